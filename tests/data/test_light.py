"""Importing the data modules imports nothing that takes seconds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import jaxtune.data

HEAVY = {"tensorflow", "torch", "transformers", "datasets", "pyarrow", "grain", "pandas"}
LATE = {"tokenizers", "sentencepiece", "jinja2"}  # where they are used, as quick as they are


@pytest.mark.slow
def test_importing_is_light():
    files = Path(jaxtune.data.__path__[0]).glob("[a-z]*.py")
    modules = [file.stem for file in files if file.stem != "sandbox"]  # imported with a template
    assert len(modules) > 10
    code = f"import sys; from jaxtune.data import {', '.join(modules)}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not (HEAVY | LATE) & set(loaded.stdout.split())


@pytest.mark.slow
def test_tensorflow_waits_for_the_first_picture(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    row = {"prefix": "a", "suffix": "b", "image": "a.png"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    code = """
import sys
from pathlib import Path
from jaxtune.data.images import Pictures
from jaxtune.data.loader import Loader
from jaxtune.data.examples import RowEncoder, columns
from jaxtune.data.sources import open_source
from jaxtune.data.survey import survey
from jaxtune.data.tokenizer import Tokenizer

source, tokenizer = open_source(sys.argv[1]), Tokenizer.open(Path(sys.argv[2]))
for pictures in (None, Pictures(8, 6, 9999)):
    prompt = RowEncoder(tokenizer, columns(), 64, pictures=pictures)
    loader = Loader(source, prompt, survey(source, prompt), batch=1, workers=0)
    if pictures is None:
        next(loader)
    print(prompt.prompt(source[0], source.place(0))[0], "tensorflow" in sys.modules)
try:
    next(loader)
except ValueError:
    print("tensorflow" in sys.modules)
"""
    base = Path(__file__).parents[2] / "configs" / "tiny" / "base"
    ran = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.jsonl", base],
        capture_output=True,
        text=True,
        check=True,
    )
    first, second, last = ran.stdout.splitlines()
    assert first.endswith(" False") and second == "9999 False" and last == "True"
