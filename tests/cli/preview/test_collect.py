"""What the preview command shows of rows with pictures, against what a step's attention sees."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from jaxtune.cli.preview.collect import preview
from jaxtune.config import load as configs
from jaxtune.display import pictures
from tests import pictured


@pytest.mark.slow
@pytest.mark.parametrize("packing", [False, True])
def test_pictures_and_who_sees_whom(tmp_path, packing):
    base = pictured.write_base(tmp_path / "base")
    rows = []
    for number in range(3):
        Image.new("RGB", (70, 60), (80 * number, 250, 0)).save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "prefix": "the cat", "suffix": " sat on it"})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = configs.parse(
        {
            "steps": 1,
            "model": {"path": str(base)},
            "data": {"source": str(tmp_path / "rows.jsonl")},
            "batch": {"rows": 3, "max_length": 128, "packing": packing},
        }
    )
    (tmp_path / "run").mkdir()
    found = preview(config, tmp_path / "run", 1)
    assert f"  picture   {pictured.PATCHES} tokens\n  prefix    <bos>the cat\n" in found.text
    page = found.page.read_text()
    assert page.count(f">picture: {pictured.PATCHES} tokens</span>") == 3
    assert page.count("<img ") == 3 and page.count("<svg ") == (1 if packing else 3)
    square = re.search(r'<image href="data:image/png;base64,([^"]+)"', page)[1]
    seen = (np.asarray(Image.open(io.BytesIO(base64.b64decode(square)))) != 255).any(-1)
    left = pictures.MARGIN - pictures.RULER
    starts = [int(y) for y in re.findall(rf'<rect x="{left}" y="(\d+)"', page.split("</svg>")[0])]
    edges = [start - pictures.RULER for start in starts] + [len(seen)]
    names = re.findall(r'text-anchor="end">(\w+)', page.split("</svg>")[0])
    assert names[:3] == ["picture", "prefix", "scored"]

    def block(query, key):
        return seen[edges[query] : edges[query + 1], edges[key] : edges[key + 1]]

    for query in range(3):
        assert block(query, 0).all() and block(query, 1).all()
    assert not block(0, 2).any() and not block(1, 2).any()
    assert 0 < block(2, 2).mean() < 1
    if packing:  # examples see themselves alone
        assert names[3:6] == ["picture", "prefix", "scored"]
        assert not block(3, 0).any() and not block(0, 3).any() and block(3, 4).all()
