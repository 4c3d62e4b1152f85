"""Renders a batch for people: pictures, prefixes, scored tokens, padding, and the counts.

It reads the arrays that a step gets, not the rows they were made of, so it shows what is really
trained on.
"""

import html
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from jaxtune.data.batches import Batch
from jaxtune.data.images import Pictures
from jaxtune.data.survey import Survey
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.display import pictures
from jaxtune.display.escapes import one_line, plural, visible

# Kind of token -> its meaning, its colour on a terminal and its colour on a page.
KINDS = {
    "picture": ("placeholders of a picture, before the text: not scored", "\033[36m", "#bbdefb"),
    "prefix": ("tokens before the first scored one: not scored", "\033[2m", "#eceff1"),
    "scored": ("tokens that the loss counts", "\033[1;32m", "#b9f6ca"),
    "unscored": ("tokens after a scored one: not scored", "\033[33m", "#ffe0b2"),
    "padding": ("fills up the line: no token attends to it", "\033[2;35m", "#f3e5f5"),
}
PLAIN = "\033[0m"
WIDTH = 100  # columns
SEEN = (
    "The square beside a line's pictures is its attention mask: each row is a token, coloured "
    "where it attends to the token of that column. Short parts are enlarged."
)
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; color: #212121 }
table { border-collapse: collapse } td { padding: .1rem 1rem .1rem 0 }
td + td { text-align: right; font-variant-numeric: tabular-nums }
h2 { font-size: 1rem; margin: 2rem 0 .5rem } h2 small { color: #757575; font-weight: normal }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .25rem 0 }
span { border-radius: 3px; padding: 0 2px }
"""
# Styles that only pages with pictures need.
PICTURED = "img, svg { margin: .25rem .75rem .25rem 0; vertical-align: top; max-width: 100% }\n"


@dataclass(frozen=True)
class Run:
    """Consecutive tokens of one kind, a key of `KINDS`."""

    kind: str
    text: str
    tokens: int


@dataclass(frozen=True)
class Shown:
    """One example of a line, or the line's padding, with its heading."""

    heading: str
    runs: list[Run]
    images: np.ndarray | tuple = ()  # float32[I, S, S, 3], from -1 to 1


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
    found = [f"{name:<22}{_indented(visible(value), 22)}" for name, value in _counts(survey)]
    for each in chain.from_iterable(_headed(batch, tokenizer, places, pictures)):
        found += ["", one_line(each.heading)]
        found += [_line(run, colour) for run in each.runs]
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
    legend = "".join(f"<tr><td>{_marked(kind, kind)}<td>{KINDS[kind][0]}" for kind in kinds)
    lines = list(_headed(batch, tokenizer, places, pictures))
    squares = map(_square, lines, seen) if pictures and seen is not None else [""] * len(lines)
    body = "".join(_section(*each) for each in zip(lines, squares, strict=True))
    note = f"<p>{SEEN}</p>\n" if pictures and seen is not None else ""
    style = STYLE + (PICTURED if pictures else "")
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f"<title>{html.escape(title)}</title>\n<style>{style}</style>\n"
        f"<h1>{html.escape(title)}</h1>\n<table>{rows}</table>\n<table>{legend}</table>\n{note}{body}"
    )


def _counts(survey: Survey | None) -> Iterable[tuple[str, str]]:
    return counts(survey).items() if survey else ()


def _headed(
    batch: Batch, tokenizer: Tokenizer, places: Sequence[str], pictures: Pictures | None
) -> Iterator[list[Shown]]:
    """Yields the examples and the padding of each line, with headings."""
    named = iter(places)
    images = _images(batch)
    for number, line in enumerate(_lines(batch, tokenizer, pictures), 1):
        shown, used = [], 0
        for runs in line:
            tokens = sum(run.tokens for run in runs)
            scored = sum(run.tokens for run in runs if run.kind == "scored")
            heading = f"line {number} · {plural(tokens, 'token')}"
            if runs[0].kind != "padding":
                place = next(named, "")
                heading += f", {scored:,} scored" + (f" · {place}" if place else "")
            count = _pictures(runs, pictures)
            own = images[number - 1, used : used + count] if count else ()
            used += count
            shown.append(Shown(heading, runs, own))
        yield shown


def _images(batch: Batch) -> np.ndarray | None:
    """Returns the pictures of each line: float32[L, I, S, S, 3]; None without pictures."""
    if batch.images is None:
        return None
    return np.asarray(batch.images).reshape(-1, *batch.images.shape[-4:])


def _pictures(runs: Sequence[Run], pictures: Pictures | None) -> int:
    """Returns the number of pictures that an example's placeholders stand for."""
    held = sum(run.tokens for run in runs if run.kind == "picture")
    return held // pictures.tokens if pictures else 0


def _lines(
    batch: Batch, tokenizer: Tokenizer, pictures: Pictures | None
) -> Iterator[list[list[Run]]]:
    """Yields for each line the runs of its examples and of its padding."""
    length, count = batch.tokens.shape[-1], batch.where.shape[-1]
    tokens, segments, valid = (
        array.reshape(-1, length) for array in (batch.tokens, batch.segments, batch.valid)
    )
    where, weights = (array.reshape(-1, count) for array in (batch.where, batch.weights))
    placeholders = valid & (tokens == pictures.token) if pictures else np.zeros_like(valid)
    for row in range(len(tokens)):
        kinds = np.where(valid[row], "unscored", "padding").astype("<U8")
        kinds[where[row][weights[row] > 0] + 1] = "scored"
        kinds[placeholders[row]] = "picture"
        owner = np.where(valid[row], segments[row], -1)
        borders = np.flatnonzero(np.diff(owner)) + 1
        parts = np.split(np.arange(length), borders)
        yield [list(_runs(tokens[row, part], kinds[part], tokenizer, pictures)) for part in parts]


def _runs(
    tokens: np.ndarray, kinds: np.ndarray, tokenizer: Tokenizer, pictures: Pictures | None
) -> Iterator[Run]:  # int32[n], str[n]
    """Yields the runs of one example; text before its first scored token is its prefix."""
    if "scored" in kinds:
        before = np.arange(len(kinds)) < np.argmax(kinds == "scored")
        kinds[before & (kinds != "picture")] = "prefix"
    text = np.argmax(kinds != "picture")  # index of the first token that is text
    borders = np.flatnonzero(kinds[1:] != kinds[:-1]) + 1
    for part in np.split(np.arange(len(tokens)), borders):
        kind = str(kinds[part[0]])
        if kind == "picture":
            yield Run(kind, _several(len(part) // pictures.tokens), len(part))
        elif kind == "padding":
            yield Run(kind, "", len(part))
        else:
            ids = tokens[part].tolist()
            continues = bool(part[0] > text)
            yield Run(kind, tokenizer.decode(ids, continues=continues, special=True), len(part))


def _several(pictures: int) -> str:
    return "picture" if pictures == 1 else f"{pictures:,} pictures"


def _visible(text: str) -> str:
    """Makes line breaks visible, and escapes characters that could control a terminal."""
    kept = (
        each if each.isprintable() or each in "\n\t" else f"\\x{ord(each):02x}" for each in text
    )
    return "".join(kept).replace("\n", "↵\n")


def _line(run: Run, colour: bool) -> str:
    shown = _told(run) if run.kind in ("padding", "picture") else _visible(run.text)
    shown = _indented(shown, 12)
    return f"  {run.kind:<10}" + (f"{KINDS[run.kind][1]}{shown}{PLAIN}" if colour else shown)


def _told(run: Run) -> str:
    """Returns the number of tokens of a run that is not text, such as padding."""
    many = f"{run.text}: " if run.text not in ("", run.kind) else ""
    return f"{many}{plural(run.tokens, 'token')}"


def _indented(text: str, by: int) -> str:
    """Wraps a text for the terminal; all its lines but the first are indented."""
    wrapped = [
        line
        for each in text.split("\n")
        for line in textwrap.wrap(each, WIDTH - by, drop_whitespace=False, replace_whitespace=False)
        or [""]
    ]
    return ("\n" + " " * by).join(wrapped)


def _section(line: Sequence[Shown], square: str) -> str:
    """Returns the HTML of a line: each example's pictures and text, and the attention square."""
    found = [
        f"<h2>{html.escape(each.heading)}</h2>\n{_seen(each)}"
        f"{square if not number else ''}<pre>{''.join(map(_block, each.runs))}</pre>\n"
        for number, each in enumerate(line)
    ]
    return "".join(found)


def _seen(shown: Shown) -> str:
    """Returns the HTML of an example's pictures, in order."""
    return "".join(
        f"{pictures.picture(image, f'picture {number}')}\n"
        for number, image in enumerate(shown.images, 1)
    )


def _square(line: Sequence[Shown], seen: np.ndarray) -> str:  # bool[T, T]
    """Returns a line's attention mask as SVG, or "" if the line has no pictures."""
    if not any(len(each.images) for each in line):
        return ""
    runs = [run for each in line for run in each.runs]
    parts = [pictures.Part(run.kind, KINDS[run.kind][2], run.tokens) for run in runs]
    return f"{pictures.attention(seen, parts)}\n"


def _block(run: Run) -> str:
    if run.kind == "padding":
        return _marked(run.kind, f"{plural(run.tokens, 'token')} of padding")
    if run.kind == "picture":
        return f"{_marked(run.kind, f'{run.text}: {run.tokens:,} tokens')}\n"
    return _marked(run.kind, _visible(run.text))


def _marked(kind: str, text: str) -> str:
    return f'<span class="{kind}" style="background:{KINDS[kind][2]}">{html.escape(text)}</span>'
