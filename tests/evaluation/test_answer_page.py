"""Answers beside their pictures, and the command that writes them."""

import base64
import html
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import launch
from jaxtune.display.pictures import SIDE
from jaxtune.evaluation import answer_page
from jaxtune.evaluation.held_out import EvalRow
from jaxtune.tasks import caption, detect
from tests import pictured

COLOURS = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
EXPECTED = "<loc0000><loc0000><loc0512><loc1023> cat ; <loc0512><loc0000><loc1023><loc0512> dog"
ANSWER = "<loc0000><loc0000><loc1023><loc0512> Cat ; <b>?"


def encoded(colour, form="PNG"):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, form)
    return file.getvalue()


def eval_row(number, *colours):
    pictures = tuple(map(encoded, colours))
    return EvalRow(number, f"rows.jsonl:{number + 1}", {}, [2], (EXPECTED,), pictures, 8)


def predicted(directory, count, **changes):
    line = {
        "prompt": "detect cat ; dog\n",
        "references": [EXPECTED],
        "answer": ANSWER,
        "scores": {"f1@0.5": 0.25, "malformed": None},
    }
    text = "".join(json.dumps(line | changes, ensure_ascii=False) + "\n" for _ in range(count))
    (directory / "predictions.jsonl").write_text(text)


def pixels(page):
    found = re.findall(r'href="data:image/png;base64,([^"]+)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(each)))) for each in found]


@pytest.mark.slow
def test_a_row_has_its_pictures_and_boxes_and_what_was_said(tmp_path):
    predicted(tmp_path, 2, answer=f"{ANSWER}\u2028\x85")
    rows = [eval_row(0, *COLOURS[:2]), eval_row(1, COLOURS[2])]
    assert answer_page.write(tmp_path, rows, detect) == tmp_path / "answers.html"
    page = (tmp_path / "answers.html").read_text()
    assert "2 of 2 rows" in page and answer_page.BOXES in page
    assert [tuple(each[0, 0]) for each in pixels(page)] == COLOURS
    first, second = page.split("<section>")[1:]
    assert "rows.jsonl:1" in first and "rows.jsonl:2" in second
    assert f">{html.escape(ANSWER)}" in first and f">{html.escape(EXPECTED)}" in first
    assert "<b>" not in page and ">f1@0.5 0.25" in first and ">malformed -" in first
    over, beside, _ = re.findall("<svg.*?</svg>", page, re.S)
    boxes = re.findall(r'<rect x="(.+?)" y="(.+?)" width="(.+?)" height="(.+?)".*?(/>)', over)
    shares = [[round(float(each) / SIDE, 2) for each in box[:4]] for box in boxes]
    assert shares == [[0, 0, 1, 0.5], [0, 0.5, 0.5, 0.5], [0, 0, 0.5, 1]]
    dashes = ["stroke-dasharray" in each for each in re.findall("<rect.*?/>", over)]
    strokes = re.findall(r'stroke="(#\w{6})"', over)
    assert dashes == [True, True, False] and "<rect" not in beside
    assert strokes[0] == strokes[2] != strokes[1]  # of a label in whatever case


@pytest.mark.slow
def test_the_first_rows_are_shown_and_other_tasks_draw_nothing(tmp_path):
    count = answer_page.FIRST + 3
    predicted(tmp_path, count, answer="a cat")
    rows = [eval_row(number, COLOURS[number % 3]) for number in range(count)]
    for task in (caption, None):
        page = answer_page.write(tmp_path, rows, task).read_text()
        assert page.count("<section>") == len(pixels(page)) == answer_page.FIRST
        assert f"{answer_page.FIRST} of {count} rows" in page
        assert "<rect" not in page and answer_page.BOXES not in page
        assert not re.search(r"(<script|@import|https?://(?!www\.w3\.org/2000/svg))", page)


def test_rows_without_pictures_have_no_page(tmp_path):
    predicted(tmp_path, 1)
    assert answer_page.write(tmp_path, [eval_row(0)], detect) is None
    assert not (tmp_path / "answers.html").exists()


@pytest.mark.slow
def test_eval_writes_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    pictured.write_base(tmp_path / "base")
    rows = []
    for number, colour in enumerate(COLOURS):
        (tmp_path / f"{number}.png").write_bytes(encoded(colour))
        rows.append({"image": f"{number}.png", "labels": ["cat"], "boxes": [[0, 0, 0.5, 1]]})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "steps": 1,
        "model": {"path": "base"},
        "data": {"source": "rows.jsonl", "task": "detect"},
        "batch": {"rows": 2, "max_length": 256},
        "eval": {"holdout": 2},
        "generate": {"max_new_tokens": 3},
    }
    (tmp_path / "x.py").write_text(f"def get_config():\n    return {values!r}\n")
    assert launch.main(["eval", "--config", "x.py", "--base"]) == 0
    (page,) = Path("runs/x/eval").glob("base-*/answers.html")
    found = json.loads(Path("runs/x/eval.json").read_text())["base"]
    assert found["page"] == str(page) and str(page) in capsys.readouterr().out
    text = page.read_text()
    places = [int(each) for each in re.findall(r"<h2>.*rows\.jsonl:(\d+)", text)]
    assert [tuple(each[0, 0]) for each in pixels(text)] == [COLOURS[at - 1] for at in places]
    expected = "<loc0000><loc0000><loc1023><loc0512> cat"
    assert text.count(f">{html.escape(expected)}") == 2 and text.count("stroke-dasharray") == 2
