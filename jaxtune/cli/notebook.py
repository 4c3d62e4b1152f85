"""Rich display for notebooks: variables, configs, batches, answers and results, and live curves.

A notebook shows HTML that follows its theme; a terminal shows plain text.
"""

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import singledispatch
from itertools import chain
from numbers import Number
from operator import itemgetter
from typing import Any

import jax

from jaxtune import sharding
from jaxtune.assembly import leaves
from jaxtune.assembly.leaves import Leaf
from jaxtune.config.fields import at
from jaxtune.config.schema import FIELDS, SCHEMA, SECTIONS, Config
from jaxtune.data import marked
from jaxtune.data.batches import Batch, collate
from jaxtune.data.examples import Example
from jaxtune.data.images import Pictures
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.decoding.text import Answer
from jaxtune.display import plots
from jaxtune.display.columns import size_text
from jaxtune.display.errors import UserError
from jaxtune.display.escapes import one_line, plural, shown
from jaxtune.display.tables import Table, escaped, fragment, group
from jaxtune.training.step import TrainState

EXPECTED = (
    "expected variables or another tree of arrays, a TrainState, a Config, a Batch or an Example "
    "with its tokenizer, a list of Answers, or a mapping of results"
)
MOST_LINES = 32  # of a batch
MOST_POINTS = 1000  # drawn of a series; of more, the extremes of equal stretches are drawn
SHARE = 0.1  # largest share of the time that a curve spends on drawing
MARKED = marked.STYLE.format(under=".jaxtune")
LABELS = {"prefix": "prompt"}  # of kinds of tokens that have another name in configs


@dataclass(frozen=True)
class Display:
    """A value as HTML, which notebooks show, and as plain text."""

    html: str
    text: str

    def _repr_html_(self) -> str:
        return fragment(self.html, MARKED)

    def __repr__(self) -> str:
        return self.text


@dataclass(frozen=True)
class _Reader:
    """Reads the tokens of batches as text and pictures."""

    tokenizer: Tokenizer | None
    pictures: Pictures | None


def show(
    value: Any, tokenizer: Tokenizer | None = None, *, pictures: Pictures | None = None
) -> Display:
    """Returns a value in a form that notebooks show as HTML and terminals as text.

    Args:
      value: Variables or another tree of arrays, of which only shapes and dtypes are read; a
        `TrainState`, which also shows what trains; a `Config`; a `Batch` or an `Example`, alone or
        in a list; an `Answer` or a list of them; or a mapping of results, such as metrics.
      tokenizer: Tokenizer of a batch or an example.
      pictures: The model's picture format, for batches with pictures.

    Returns:
      An object with `_repr_html_` and a text as its repr.
    """
    return _shown(value, _Reader(tokenizer, pictures))


def _titled(title: str, table: Table) -> Display:
    """Returns a display of a table under a title."""
    return Display(group(title, table.html()), "\n".join([title, *table.lines()]))


@singledispatch
def _shown(value: Any, reader: _Reader) -> Display:
    if all(hasattr(value, name) for name in ("tokens", "where", "targets", "weights")):
        return _batch(value, reader)  # any pytree with these attributes is a batch
    return _tree(value)


@_shown.register
def _state(state: TrainState, reader: _Reader) -> Display:
    found = leaves.of_state(state)
    count, moving = map(leaves.parameters, (found, [leaf for leaf in found if leaf.trains]))
    title = (
        f"TrainState: {leaves.sizes(found)}; {moving:,} parameters train ({moving / count:.2%}), "
        f"optimiser state {size_text(sharding.total_bytes(state.opt_state))}"
    )
    return _of_leaves(found, title, (*leaves.COLUMNS, "trains"))


def _tree(value: Any) -> Display:
    kind = type(value).__name__
    try:
        found = leaves.described(value)
    except UserError as error:
        raise UserError(f"cannot show a value of type {kind}: {error}; {EXPECTED}") from None
    if not found:
        raise UserError(f"cannot show a value of type {kind} without arrays: {EXPECTED}")
    return _of_leaves(found, f"{kind}: {leaves.sizes(found)}", leaves.COLUMNS)


def _of_leaves(found: Sequence[Leaf], title: str, columns: Sequence[str]) -> Display:
    rows = [*(leaf.row() for leaf in found), leaves.total(found)]
    lines = [one_line(title), *Table(columns, rows, leaves.NUMBERS).lines()]
    return Display(group(title, leaves.grouped(found, columns)), "\n".join(lines))


@_shown.register
def _config(config: Config, reader: _Reader) -> Display:
    given = set(SCHEMA.given(config, *FIELDS))
    title = f"Config: {len(given)} of {len(FIELDS)} fields differ from the defaults"
    content = "".join(_section(config, name, given) for name in ("", *SECTIONS))
    rows = [_field(config, key, key) for key in FIELDS if key in given]
    table = Table(("field", "value", "default"), rows)
    return Display(group(title, content), "\n".join([title, *(table.lines() if rows else ())]))


def _section(config: Config, name: str, given: set[str]) -> str:
    keys = [key for key in FIELDS if key.rpartition(".")[0] == name]
    strong = [number for number, key in enumerate(keys) if key in given]
    rows = [_field(config, key, key.rpartition(".")[2]) for key in keys]
    table = Table(("field", "value", "default"), rows, strong=strong)
    title = name or "top level"
    title += f": {len(strong)} of {len(keys)} differ" if strong else ""
    return group(title, table.html(), opened=bool(strong))


def _field(config: Config, key: str, name: str) -> dict[str, str]:
    default = FIELDS[key].default
    return {"field": name, "value": shown(at(config, key)), "default": shown(default)}


@_shown.register
def _batch(batch: Batch, reader: _Reader, places: Sequence[str] = ()) -> Display:
    if reader.tokenizer is None:
        raise UserError(
            "showing a batch or an example needs its tokenizer: "
            "jaxtune.show(batch, model.origin.tokenizer)"
        )
    arrays = marked.on_host(batch)
    *parts, rows, length = arrays.tokens.shape
    count = math.prod(parts) * rows
    title = f"Batch: {plural(count, 'line')} of {plural(length, 'token')}"
    title += f" in {parts[0]} micro-batches" if parts else ""
    lines = list(marked.headed(_first(arrays), reader.tokenizer, places, reader.pictures))
    note = f"… and {plural(count - len(lines), 'more line')}" if count > len(lines) else ""
    drawn = _parted(lines, rows) if parts else _drawn(lines)
    content = f"<p>{_legend(lines)}</p>\n{drawn}" + (f"<p>{note}</p>\n" if note else "")
    text = [title, *chain.from_iterable(map(_told, lines)), *filter(None, [note])]
    return Display(group(title, content), "\n".join(text))


@_shown.register
def _example(example: Example, reader: _Reader) -> Display:
    return _examples([example], reader)


def _examples(examples: Sequence[Example], reader: _Reader) -> Display:
    shape = (
        len(examples),
        max(len(each.tokens) for each in examples),
        max(max(int(each.scored.sum()) for each in examples), 1),
    )
    batch = collate([[each] for each in examples], shape=shape)
    return _batch(batch, reader, [each.place for each in examples])


def _first(batch: Batch) -> Batch:
    """Returns the first lines of a batch, without an axis of micro-batches."""
    if batch.tokens.ndim == 3:
        batch = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), batch)
    return jax.tree.map(lambda leaf: leaf[:MOST_LINES], batch)


def _legend(lines: Sequence[Sequence[marked.Shown]]) -> str:
    kinds = {run.kind for each in chain.from_iterable(lines) for run in each.runs}
    return " ".join(
        marked.marked(kind, LABELS.get(kind, kind), meaning)
        for kind, (meaning, *_) in marked.KINDS.items()
        if kind in kinds
    )


def _parted(lines: Sequence[Sequence[marked.Shown]], rows: int) -> str:
    """Returns HTML of lines in a group for each micro-batch of `rows` lines."""
    starts = range(0, len(lines), rows)
    return "".join(
        group(f"micro-batch {number}", _drawn(lines[start : start + rows]))
        for number, start in enumerate(starts, 1)
    )


def _drawn(lines: Sequence[Sequence[marked.Shown]]) -> str:
    """Returns HTML of lines, each with its examples and padding apart from each other."""
    return "".join(f"<section>\n{''.join(map(_segment, line))}</section>\n" for line in lines)


def _segment(each: marked.Shown) -> str:
    heading = f"<small>{escaped(one_line(each.heading))}</small>\n"
    return f"{heading}{marked.images_of(each)}{marked.text_of(each)}"


def _told(line: Sequence[marked.Shown]) -> Iterator[str]:
    """Yields the text of a line."""
    for each in line:
        yield one_line(each.heading)
        for run in each.runs:
            yield marked.run_line(run, label=LABELS.get(run.kind, ""))


@_shown.register
def _answer(answer: Answer, reader: _Reader) -> Display:
    return _answers([answer], reader)


def _answers(answers: Sequence[Answer], reader: _Reader) -> Display:
    columns = ["answer", "tokens", "log-probability", "ended"]
    columns += ["next tokens"] if any(each.next for each in answers) else []
    rows = [
        {
            "answer": each.text,
            "tokens": f"{each.tokens:,}",
            "log-probability": f"{each.log_prob:.3f}",
            "ended": "yes" if each.ended else "no: at the token limit",
            "next tokens": ", ".join(f"{text!r} {share:.1%}" for text, share in each.next),
        }
        for each in answers
    ]
    table = Table(columns, rows, ("tokens", "log-probability"))
    return _titled(plural(len(answers), "answer"), table)


LISTS: dict[type, Callable[[Sequence, _Reader], Display]] = {Answer: _answers, Example: _examples}


@_shown.register(list)
@_shown.register(tuple)
def _list(values: Sequence, reader: _Reader) -> Display:
    kinds = set(map(type, values))
    render = LISTS.get(kinds.pop()) if len(kinds) == 1 else None
    return render(values, reader) if render else _tree(values)


@_shown.register
def _mapping(values: Mapping, reader: _Reader) -> Display:
    results = dict(_named(values))
    if not all(map(_is_result, results.values())):
        return _tree(values)
    rows = [{"name": name, "value": _result(value)} for name, value in results.items()]
    return _titled(plural(len(rows), "result"), Table(("name", "value"), rows, ("value",)))


def _named(values: Mapping, before: str = "") -> Iterator[tuple[str, Any]]:
    """Yields values with the names of the mappings that they are in, such as `memory.bytes`."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _named(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _is_result(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_result, value))
    plain = value is None or isinstance(value, str | Number | os.PathLike)
    return plain or getattr(value, "shape", None) == ()


def _result(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_result, value))
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float):
        return f"{value:.5g}"
    return f"{value:,}" if type(value) is int else str(value)


class Curve:
    """A plot of named series over steps, which a notebook redraws in place as points are added.

    Outside a notebook it collects the points only. Values that are not finite are not drawn.

    Attributes:
      series: The points (step, value) by name of the series.
    """

    def __init__(self, title: str = "", *, y_label: str = "loss", log: bool = False):
        """Makes an empty plot; `log` makes its vertical axis logarithmic."""
        self.title, self.y_label, self.log = title, y_label, log
        self.series: dict[str, list[tuple[float, float]]] = {}
        self._handle, self._cell, self._next, self._stale = None, None, 0.0, False

    def add(self, step: int | float, **values: Any) -> None:
        """Adds one point to each named series, which begins with its first point."""
        at = _scalar("step", step)
        numbers = {name: _scalar(name, value) for name, value in values.items()}  # all, or none
        for name, value in numbers.items():
            self.series.setdefault(name, []).append((at, value))
        if shell := _kernel():
            self._redraw(shell)

    def __repr__(self) -> str:
        ends = (
            f"{name} {each[-1][1]:.5g} at step {plots.number(each[-1][0])} "
            f"({plural(len(each), 'point')})"
            for name, each in self.series.items()
        )
        return one_line(f"Curve {self.title}: {', '.join(ends) or 'no points'}")

    def _repr_svg_(self) -> str | None:
        series = {name: _thinned(points) for name, points in self.series.items()}
        if not any(series.values()):
            return None
        return plots.curves(series, title=self.title, y_label=self.y_label, log=self.log)

    def _repr_html_(self) -> str:
        return fragment(self._repr_svg_() or f"<p>{escaped(repr(self))}</p>\n")

    def _redraw(self, shell: Any) -> None:
        """Draws in the cell that runs, again only if drawing takes little of the time."""
        begun = time.monotonic()
        if self._cell != shell.execution_count:
            from IPython.display import display

            self._cell, self._handle = shell.execution_count, display(self, display_id=True)
            shell.events.register("post_run_cell", self._finish)
        elif begun < self._next:
            self._stale = True
            return
        else:
            self._handle.update(self)
        self._stale, now = False, time.monotonic()
        self._next = now + (now - begun) / SHARE

    def _finish(self, *_: Any) -> None:
        """Draws the last points when the cell ends."""
        _kernel().events.unregister("post_run_cell", self._finish)
        if self._stale:
            self._stale = False
            self._handle.update(self)


def _kernel() -> Any:
    """Returns the IPython shell of a notebook's kernel; None elsewhere."""
    ipython = sys.modules.get("IPython")  # a kernel has imported it
    shell = ipython.get_ipython() if ipython else None
    return shell if hasattr(shell, "kernel") else None


def _scalar(name: str, value: Any) -> float:
    try:
        return float(None if isinstance(value, str) else value)  # float() would parse a text
    except (TypeError, ValueError):
        raise UserError(f"curve: {name} is {one_line(shown(value))}; expected a number") from None


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns the finite points; of very many, the lowest and highest of each stretch."""
    finite = [point for point in points if all(map(math.isfinite, point))]
    stride = -(-2 * len(finite) // MOST_POINTS)
    if stride <= 2:
        return finite
    stretches = (finite[start : start + stride] for start in range(0, len(finite), stride))
    return [
        point
        for each in stretches
        for point in sorted({min(each, key=itemgetter(1)), max(each, key=itemgetter(1))})
    ]
