"""Batches as a person reads them: what is prefix, what is scored, what is padding; the counts.

It reads the arrays that a step sees, not the rows they were made of, so what it shows is true.
"""

import html
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from jaxtune.data.batches import Batch
from jaxtune.data.survey import Survey
from jaxtune.data.tokenizer import Tokenizer

# Kind of token -> what it is, its colour on a terminal and on a page.
KINDS = {
    "prefix": ("before the first scored token: no loss", "\033[2m", "#eceff1"),
    "scored": ("learned: has a loss", "\033[1;32m", "#b9f6ca"),
    "unscored": ("after a scored token: no loss", "\033[33m", "#ffe0b2"),
    "padding": ("filler: seen by nothing", "\033[2;35m", "#f3e5f5"),
}
PLAIN = "\033[0m"
WIDTH = 100  # columns
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; color: #212121 }
table { border-collapse: collapse } td { padding: .1rem 1rem .1rem 0 }
td + td { text-align: right; font-variant-numeric: tabular-nums }
h2 { font-size: 1rem; margin: 2rem 0 .5rem } h2 small { color: #757575; font-weight: normal }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .25rem 0 }
span { border-radius: 3px; padding: 0 2px }
"""


@dataclass(frozen=True)
class Run:
    """Consecutive tokens of one kind."""

    kind: str
    text: str
    tokens: int


def counts(survey: Survey) -> dict[str, str]:
    """What a survey found, by name."""
    found = {
        "rows": f"{len(survey.rows):,}",
        "tokens": f"{survey.tokens:,}",
        "scored tokens": f"{survey.scored_tokens:,} ({survey.share:.1%})",
        "longest row": f"{survey.longest:,} tokens",
        "rows cut to fit": f"{survey.cut:,} ({survey.cut_tokens:,} tokens)",
        "skipped as too long": f"{survey.too_long.count:,}",
        "skipped as malformed": f"{survey.malformed.count:,}",
    }
    first = [*survey.malformed.first, *survey.too_long.first]
    return found | ({"the first skipped": "\n".join(first)} if first else {})


def text(
    batch: Batch,
    tokenizer: Tokenizer,
    places: Sequence[str] = (),
    survey: Survey | None = None,
    *,
    colour: bool = False,
) -> str:
    """A batch for the terminal; `places` are those of its rows, `colour` is for a tty alone."""
    found = [f"{name:<22}{_indented(value, 22)}" for name, value in _counts(survey)]
    for heading, runs in _headed(batch, tokenizer, places):
        found += ["", heading]
        found += [_line(run, colour) for run in runs]
    return "\n".join(found).lstrip("\n") + "\n"


def page(
    batch: Batch,
    tokenizer: Tokenizer,
    places: Sequence[str] = (),
    survey: Survey | None = None,
    *,
    title: str = "Preview",
) -> str:
    """A batch as one HTML page that needs nothing beside it; `places` are those of its rows."""
    rows = "".join(f"<tr><td>{name}<td>{html.escape(value)}" for name, value in _counts(survey))
    legend = "".join(f"<tr><td>{_marked(kind, kind)}<td>{KINDS[kind][0]}" for kind in KINDS)
    body = "".join(
        f"<h2>{html.escape(heading)}</h2>\n<pre>{''.join(map(_block, runs))}</pre>\n"
        for heading, runs in _headed(batch, tokenizer, places)
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n"
        f"<h1>{html.escape(title)}</h1>\n<table>{rows}</table>\n<table>{legend}</table>\n{body}"
    )


def _counts(survey: Survey | None) -> Iterable[tuple[str, str]]:
    return counts(survey).items() if survey else ()


def _headed(
    batch: Batch, tokenizer: Tokenizer, places: Sequence[str]
) -> Iterator[tuple[str, list[Run]]]:
    """Each example of a batch, and the padding of each line, under a heading."""
    named = iter(places)
    for number, line in enumerate(_lines(batch, tokenizer), 1):
        for runs in line:
            tokens = sum(run.tokens for run in runs)
            scored = sum(run.tokens for run in runs if run.kind == "scored")
            heading = f"line {number} · {tokens:,} tokens"
            if runs[0].kind != "padding":
                place = next(named, "")
                heading += f", {scored:,} scored" + (f" · {place}" if place else "")
            yield heading, runs


def _lines(batch: Batch, tokenizer: Tokenizer) -> Iterator[list[list[Run]]]:
    """Each line's examples as runs, and its padding."""
    length, count = batch.tokens.shape[-1], batch.where.shape[-1]
    tokens, segments, valid = (
        array.reshape(-1, length) for array in (batch.tokens, batch.segments, batch.valid)
    )
    where, weights = (array.reshape(-1, count) for array in (batch.where, batch.weights))
    for row in range(len(tokens)):
        kinds = np.where(valid[row], "unscored", "padding").astype("<U8")
        kinds[where[row][weights[row] > 0] + 1] = "scored"
        owner = np.where(valid[row], segments[row], -1)
        borders = np.flatnonzero(np.diff(owner)) + 1
        parts = np.split(np.arange(length), borders)
        yield [list(_runs(tokens[row, part], kinds[part], tokenizer)) for part in parts]


def _runs(
    tokens: np.ndarray, kinds: np.ndarray, tokenizer: Tokenizer
) -> Iterator[Run]:  # int32[n], str[n]
    """The runs of one example; what comes before its first scored token is its prefix."""
    if "scored" in kinds:
        kinds[: np.argmax(kinds == "scored")] = "prefix"
    borders = np.flatnonzero(kinds[1:] != kinds[:-1]) + 1
    for part in np.split(np.arange(len(tokens)), borders):
        kind = str(kinds[part[0]])
        ids = tokens[part].tolist()
        shown = (
            ""
            if kind == "padding"
            else tokenizer.decode(ids, continues=bool(part[0]), special=True)
        )
        yield Run(kind, shown, len(part))


def _visible(text: str) -> str:
    """Text with its line breaks shown, and without what would command a terminal."""
    kept = (
        each if each.isprintable() or each in "\n\t" else f"\\x{ord(each):02x}" for each in text
    )
    return "".join(kept).replace("\n", "↵\n")


def _line(run: Run, colour: bool) -> str:
    shown = f"{run.tokens:,} tokens" if run.kind == "padding" else _visible(run.text)
    shown = _indented(shown, 12)
    return f"  {run.kind:<10}" + (f"{KINDS[run.kind][1]}{shown}{PLAIN}" if colour else shown)


def _indented(text: str, by: int) -> str:
    """Text whose further lines, those too long for the terminal among them, are indented."""
    wrapped = [
        line
        for each in text.split("\n")
        for line in textwrap.wrap(each, WIDTH - by, drop_whitespace=False, replace_whitespace=False)
        or [""]
    ]
    return ("\n" + " " * by).join(wrapped)


def _block(run: Run) -> str:
    shown = f"{run.tokens:,} tokens of padding" if run.kind == "padding" else _visible(run.text)
    return _marked(run.kind, shown)


def _marked(kind: str, text: str) -> str:
    return f'<span class="{kind}" style="background:{KINDS[kind][2]}">{html.escape(text)}</span>'
