"""Renders the first step of a run for people: its marked lines and pictures, and the counts."""

import html
from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np

from jaxtune.data.batches import Batch
from jaxtune.data.images import Pictures
from jaxtune.data.marked import (
    KINDS,
    Shown,
    headed,
    images_of,
    indented,
    marked,
    run_line,
    text_of,
)
from jaxtune.data.marked import STYLE as MARKED
from jaxtune.data.survey import Survey
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.display import pictures
from jaxtune.display.escapes import one_line, visible

SEEN = (
    "The square beside a line's pictures is its attention mask: each row is a token, coloured "
    "where it attends to the token of that column. Short parts are enlarged."
)
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; color: #212121 }
table { border-collapse: collapse } td { padding: .1rem 1rem .1rem 0 }
td + td { text-align: right; font-variant-numeric: tabular-nums }
h2 { font-size: 1rem; margin: 2rem 0 .5rem } h2 small { color: #757575; font-weight: normal }
"""
# Styles that only pages with pictures need.
PICTURED = "img, svg { margin: .25rem .75rem .25rem 0; vertical-align: top; max-width: 100% }\n"


def counts(survey: Survey) -> dict[str, str]:
    """Returns the counts of a survey by label."""
    found = {
        "rows": f"{len(survey.rows):,}",
        **({"pictures": f"{survey.pictures.sum():,}"} if survey.pictures.any() else {}),
        "tokens": f"{survey.tokens:,}",
        "scored tokens": f"{survey.scored_tokens:,} ({survey.share:.1%})",
        "longest row": f"{survey.longest:,} tokens",
        "rows cut to fit": f"{survey.cut:,} ({survey.cut_tokens:,} tokens)",
        "skipped as too long": f"{survey.too_long.count:,}",
        "skipped as malformed": f"{survey.malformed.count:,}",
    }
    first = [*survey.malformed.first, *survey.too_long.first]
    return found | ({"first skipped": "\n".join(first)} if first else {})


def text(
    batch: Batch,
    tokenizer: Tokenizer,
    places: Sequence[str] = (),
    survey: Survey | None = None,
    *,
    pictures: Pictures | None = None,
    colour: bool = False,
) -> str:
    """Renders a batch for the terminal.

    Args:
      batch: Batch to render, with or without an axis of micro-batches.
      tokenizer: Tokenizer to decode its tokens.
      places: Places of its rows, line after line.
      survey: Counts to print first, if given.
      pictures: The model's picture format, which tells the placeholder; None without pictures.
      colour: Colours tokens by kind, for terminals only.

    Returns:
      The text, with a line break at its end.
    """
    found = [f"{name:<22}{indented(visible(value), 22)}" for name, value in _counts(survey)]
    for each in chain.from_iterable(headed(batch, tokenizer, places, pictures)):
        found += ["", one_line(each.heading)]
        found += [run_line(run, colour) for run in each.runs]
    return "\n".join(found).lstrip("\n") + "\n"


def page(
    batch: Batch,
    tokenizer: Tokenizer,
    places: Sequence[str] = (),
    survey: Survey | None = None,
    *,
    pictures: Pictures | None = None,
    seen: Iterable[np.ndarray] | None = None,
    title: str = "Preview",
) -> str:
    """Renders a batch as one self-contained HTML page.

    Args:
      batch: Batch to render, with or without an axis of micro-batches.
      tokenizer: Tokenizer to decode its tokens.
      places: Places of its rows, line after line.
      survey: Counts to print first, if given.
      pictures: The model's picture format, which tells the placeholder; None without pictures.
      seen: Attention mask of each line, bool[T, T]; it is drawn for lines with pictures.
      title: Title of the page.

    Returns:
      The HTML.
    """
    rows = "".join(f"<tr><td>{name}<td>{html.escape(value)}" for name, value in _counts(survey))
    kinds = [kind for kind in KINDS if kind != "picture" or pictures]
    legend = "".join(f"<tr><td>{marked(kind, kind)}<td>{KINDS[kind][0]}" for kind in kinds)
    lines = list(headed(batch, tokenizer, places, pictures))
    squares = map(_square, lines, seen) if pictures and seen is not None else [""] * len(lines)
    body = "".join(_section(*each) for each in zip(lines, squares, strict=True))
    note = f"<p>{SEEN}</p>\n" if pictures and seen is not None else ""
    style = STYLE + MARKED.format(under="") + (PICTURED if pictures else "")
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f"<title>{html.escape(title)}</title>\n<style>{style}</style>\n"
        f"<h1>{html.escape(title)}</h1>\n<table>{rows}</table>\n<table>{legend}</table>\n{note}{body}"
    )


def _counts(survey: Survey | None) -> Iterable[tuple[str, str]]:
    return counts(survey).items() if survey else ()


def _section(line: Sequence[Shown], square: str) -> str:
    """Returns the HTML of a line: each example's pictures and text, and the attention square."""
    found = [
        f"<h2>{html.escape(each.heading)}</h2>\n{images_of(each)}"
        f"{square if not number else ''}{text_of(each)}"
        for number, each in enumerate(line)
    ]
    return "".join(found)


def _square(line: Sequence[Shown], seen: np.ndarray) -> str:  # bool[T, T]
    """Returns a line's attention mask as SVG, or "" if the line has no pictures."""
    if not any(len(each.images) for each in line):
        return ""
    runs = [run for each in line for run in each.runs]
    parts = [pictures.Part(run.kind, KINDS[run.kind][2], run.tokens) for run in runs]
    return f"{pictures.attention(seen, parts)}\n"
