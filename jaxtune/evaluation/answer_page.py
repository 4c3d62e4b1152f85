"""A self-contained HTML page that shows answers beside their pictures."""

import html
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxtune.data import images
from jaxtune.display import pictures
from jaxtune.display.pictures import Frame
from jaxtune.display.plots import COLOURS
from jaxtune.evaluation.held_out import WHOLE, EvalRow
from jaxtune.files import write_text
from jaxtune.metrics.boxes import Box

PAGE = "answers.html"
FIRST = 32  # maximum number of rows on the page
BOXES = "Solid boxes are from the answer, dashed boxes from the references."
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; color: #212121 }
section { display: flex; flex-wrap: wrap; gap: .5rem 1rem; margin: 1.5rem 0 }
h2 { flex-basis: 100%; font-size: 1rem; margin: 0 }
dl { display: grid; grid-template-columns: auto 1fr; gap: .25rem 1rem; margin: 0; flex: 1 20rem }
dt { color: #757575 } dd { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere }
.answer { font-weight: 600 }
"""


def write(directory: Path, rows: Sequence[EvalRow], task: ModuleType | None) -> Path | None:
    """Writes a page of the first rows and their predictions, if any of these rows has pictures.

    If the task defines `drawn`, the boxes that it finds in the answer and the references are drawn
    over the first picture of each row.

    Args:
      directory: Directory with the predictions of all `rows`; the page is written into it.
      rows: The evaluated rows, in the order of the predictions.
      task: The task of the rows, or None.

    Returns:
      The path of the page, or None if none of the first rows has pictures.
    """
    if not any(row.pictures for row in rows[:FIRST]):
        return None
    # Read as bytes, which split at newlines only: JSON leaves other line separators unescaped.
    with (directory / WHOLE).open("rb") as file:
        lines = [json.loads(line) for line in islice(file, FIRST)]
    shown = list(zip(rows[:FIRST], lines, strict=True))
    title = html.escape(f"Answers of {directory.name}")
    drawn = f"<p>{BOXES}</p>\n" if hasattr(task, "drawn") else ""
    body = "".join(_section(*each, task) for each in shown)
    write_text(
        directory / PAGE,
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f"<style>{STYLE}</style>\n<h1>{title}</h1>\n"
        f"<p>The first {len(shown):,} of {len(rows):,} rows, with pictures as the model sees them."
        "</p>\n"
        f"{drawn}{body}",
    )
    return directory / PAGE


def _section(row: EvalRow, line: Mapping[str, Any], task: ModuleType | None) -> str:
    """Returns the HTML of one row: its pictures, prompt, references, answer and scores."""
    told = "".join(
        f'<dt>{name}<dd class="{name}">{html.escape(text)}\n' for name, text in _told(line)
    )
    return (
        f"<section>\n<h2>{html.escape(row.place)}</h2>\n"
        f"<div>{''.join(_pictures(row, line, task))}</div>\n<dl>{told}</dl>\n</section>\n"
    )


def _pictures(row: EvalRow, line: Mapping[str, Any], task: ModuleType | None) -> Iterator[str]:
    """Yields the HTML of each picture of a row; the first has the boxes drawn over it."""
    frames = _frames(line, task)
    for number, reference in enumerate(row.pictures, 1):
        pixels = images.read(reference, row.side, row.place)
        yield pictures.framed(pixels, frames if number == 1 else [], f"picture {number}") + "\n"


def _frames(line: Mapping[str, Any], task: ModuleType | None) -> list[Frame]:
    """Returns the boxes of the references (dashed) and the answer; each label has one colour."""
    draw = getattr(task, "drawn", None)
    if draw is None:
        return []
    expected: list[Box] = list(chain.from_iterable(map(draw, line["references"])))
    answered: list[Box] = draw(line["answer"])
    labels = dict.fromkeys(box.label.casefold() for box in [*expected, *answered])
    colours = {label: COLOURS[at % len(COLOURS)] for at, label in enumerate(labels)}
    return [
        Frame(box.label, box.sides, colours[box.label.casefold()], dashed)
        for boxes, dashed in ((expected, True), (answered, False))
        for box in boxes
    ]


def _told(line: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields (kind, text) pairs to show beside the pictures; the kind is also the CSS class."""
    yield "prompt", line["prompt"].strip()
    for reference in dict.fromkeys(line["references"]):
        yield "expected", reference
    yield "answer", line["answer"].strip()
    for name, score in line["scores"].items():
        yield "score", f"{name} {'-' if score is None else format(score, '.4g')}"
