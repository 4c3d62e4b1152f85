"""Marks the tokens of a batch by kind: prefix, scored, padding and so on, as text and as HTML.

It reads the arrays that a step gets, not the rows they were made of, so it shows what is really
trained on.
"""

import html
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxtune.data.batches import Batch
from jaxtune.data.images import Pictures
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.display import pictures
from jaxtune.display.errors import UserError
from jaxtune.display.escapes import plural

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
INK = "#212121"  # of text on these colours, whatever the theme of the page
# Styles of marked text, under a selector of the page; "" is the whole page.
STYLE = """
{under} pre {{ white-space: pre-wrap; overflow-wrap: anywhere; margin: .25rem 0 }}
{under} span {{ border-radius: 3px; padding: 0 2px }}
"""


@dataclass(frozen=True)
class Run:
    """Consecutive tokens of one kind, a key of `KINDS`, that have one weight in the loss."""

    kind: str
    text: str
    tokens: int
    start: int = 0  # index of the first token in its line
    weight: float = 0.0  # of each token's loss; 0 unless scored


@dataclass(frozen=True)
class Shown:
    """One example of a line, or the line's padding, with its heading."""

    heading: str
    runs: list[Run]
    images: np.ndarray | tuple = ()  # float32[I, S, S, 3], from -1 to 1


def on_host(batch: Any) -> Batch:
    """Returns the arrays of a batch on this host, with defaults for those that it lacks.

    Args:
      batch: A `Batch`, or any object with some of its attributes, as `train_step` takes it.

    Returns:
      A batch for `headed`, without positions and the causal array.

    Raises:
      UserError: If the shapes are not those of a batch.
    """
    tokens, where, targets, weights = (
        np.asarray(getattr(batch, name)) for name in ("tokens", "where", "targets", "weights")
    )
    segments, valid, images = (
        None if (given := getattr(batch, name, None)) is None else np.asarray(given)
        for name in ("segments", "valid", "images")
    )
    if tokens.ndim not in (2, 3) or where.shape[:-1] != tokens.shape[:-1]:
        raise UserError(
            f"expected a batch with tokens [B, T] and where [B, K], or with an axis of "
            f"micro-batches before B; found tokens {tokens.shape} and where {where.shape}"
        )
    return Batch(
        tokens=tokens,
        positions=None,
        segments=np.zeros_like(tokens) if segments is None else segments,
        valid=np.ones(tokens.shape, bool) if valid is None else valid,
        causal=None,
        where=where,
        targets=targets,
        weights=weights,
        images=images,
    )


def headed(
    batch: Batch,
    tokenizer: Tokenizer,
    places: Sequence[str] = (),
    pictures: Pictures | None = None,
) -> Iterator[list[Shown]]:
    """Yields the examples and the padding of each line, with headings.

    Args:
      batch: Batch of NumPy arrays, with or without an axis of micro-batches.
      tokenizer: Tokenizer to decode its tokens.
      places: Places of its rows, line after line.
      pictures: The model's picture format, which tells the placeholder; None without pictures.

    Returns:
      An iterator over the lines of all micro-batches.
    """
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
            drawn = count and images is not None
            own = images[number - 1, used : used + count] if drawn else ()
            used += count
            shown.append(Shown(heading, runs, own))
        yield shown


def images_of(shown: Shown) -> str:
    """Returns the HTML of an example's pictures, in order."""
    return "".join(
        f"{pictures.picture(image, f'picture {number}')}\n"
        for number, image in enumerate(shown.images, 1)
    )


def text_of(shown: Shown) -> str:
    """Returns the HTML of an example's marked text."""
    return f"<pre>{''.join(map(_block, shown.runs))}</pre>\n"


def marked(kind: str, text: str, title: str = "") -> str:
    """Returns the HTML of a text in the colour of its kind, with an optional tooltip."""
    about = f' title="{html.escape(title)}"' if title else ""
    style = f"background:{KINDS[kind][2]};color:{INK}"
    return f'<span class="{kind}" style="{style}"{about}>{html.escape(text)}</span>'


def run_line(run: Run, colour: bool = False, label: str = "") -> str:
    """Returns a run as text under its kind or a label; `colour` is for terminals only."""
    shown = _told(run) if run.kind in ("padding", "picture") else _visible(run.text)
    shown = indented(shown, 12)
    return f"  {label or run.kind:<10}" + (
        f"{KINDS[run.kind][1]}{shown}{PLAIN}" if colour else shown
    )


def indented(text: str, by: int) -> str:
    """Wraps a text for the terminal; all its lines but the first are indented."""
    wrapped = [
        line
        for each in text.split("\n")
        for line in textwrap.wrap(each, WIDTH - by, drop_whitespace=False, replace_whitespace=False)
        or [""]
    ]
    return ("\n" + " " * by).join(wrapped)


def _visible(text: str) -> str:
    """Makes line breaks visible, and escapes characters that could control a terminal."""
    kept = (
        each if each.isprintable() or each in "\n\t" else f"\\x{ord(each):02x}" for each in text
    )
    return "".join(kept).replace("\n", "↵\n")


def _told(run: Run) -> str:
    """Returns the number of tokens of a run that is not text, such as padding."""
    many = f"{run.text}: " if run.text not in ("", run.kind) else ""
    return f"{many}{plural(run.tokens, 'token')}"


def _about(run: Run) -> str:
    """Returns the positions in the line and the weight of a run's tokens, for a tooltip."""
    last = run.start + run.tokens - 1
    where = f"position {run.start:,}" if run.tokens == 1 else f"positions {run.start:,} to {last:,}"
    weight = f", weight {run.weight:.4g}" if run.kind == "scored" else ""
    return f"{plural(run.tokens, 'token')}, {where}{weight}"


def _block(run: Run) -> str:
    if run.kind == "padding":
        return marked(run.kind, f"{plural(run.tokens, 'token')} of padding", _about(run))
    if run.kind == "picture":
        return f"{marked(run.kind, f'{run.text}: {run.tokens:,} tokens', _about(run))}\n"
    return marked(run.kind, _visible(run.text), _about(run))


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
    where, given = (array.reshape(-1, count) for array in (batch.where, batch.weights))
    placeholders = valid & (tokens == pictures.token) if pictures else np.zeros_like(valid)
    for row in range(len(tokens)):
        scored = given[row] > 0
        kinds = np.where(valid[row], "unscored", "padding").astype("<U8")
        kinds[where[row][scored] + 1] = "scored"
        kinds[placeholders[row]] = "picture"
        weights = np.zeros(length, np.float32)
        weights[where[row][scored] + 1] = given[row][scored]
        owner = np.where(valid[row], segments[row], -1)
        borders = np.flatnonzero(np.diff(owner)) + 1
        parts = np.split(np.arange(length), borders)
        yield [
            list(_runs(tokens[row], kinds[part], weights[part], part, tokenizer, pictures))
            for part in parts
        ]


def _runs(
    tokens: np.ndarray,  # int32[T]
    kinds: np.ndarray,  # str[n]
    weights: np.ndarray,  # float32[n]
    part: np.ndarray,  # int64[n], the positions of one example in its line
    tokenizer: Tokenizer,
    pictures: Pictures | None,
) -> Iterator[Run]:
    """Yields the runs of one example; text before its first scored token is its prefix."""
    if "scored" in kinds:
        before = np.arange(len(kinds)) < np.argmax(kinds == "scored")
        kinds[before & (kinds != "picture")] = "prefix"
    text = np.argmax(kinds != "picture")  # index of the first token that is text
    changes = (kinds[1:] != kinds[:-1]) | (weights[1:] != weights[:-1])
    for at in np.split(np.arange(len(kinds)), np.flatnonzero(changes) + 1):
        kind, count = str(kinds[at[0]]), len(at)
        shown = ""
        if kind == "picture":
            shown = _several(count // pictures.tokens)
        elif kind != "padding":
            ids = tokens[part[at]].tolist()
            shown = tokenizer.decode(ids, continues=bool(at[0] > text), special=True)
        yield Run(kind, shown, count, int(part[at[0]]), float(weights[at[0]]))


def _several(pictures: int) -> str:
    return "picture" if pictures == 1 else f"{pictures:,} pictures"
