"""Foreign tensor names and layouts, and ours: one table, read in both directions.

Ours stack the layers on axis 0 and hold linear weights as [in, out]. A table says, for each
foreign tensor, which of our leaves it is; shapes come from the model, so a table has no sizes.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Name:
    """A foreign name, with `{layer}` where its number stands, and our leaf or leaves.

    More than one leaf: the foreign tensor is ours joined along its first axis.
    """

    theirs: str
    ours: tuple[str, ...]
    axes: tuple[int, ...] | None = None  # which of ours each of their axes is; None: the same
    view: Shape | None = None  # what shape ours take before axes change places; None: their own
    stacked: bool = False  # all layers are in one tensor, on an axis before the others


TRANSPOSED = (1, 0)  # the axes of a linear map that is stored as [out, in]
Table = tuple[Name, ...]


@dataclass(frozen=True)
class Piece:
    """Rows of one foreign tensor, or of a layer of it; they are one of our leaves, or its layer."""

    theirs: str
    shape: Shape  # of the whole foreign tensor
    rows: slice  # of its first axis, after that of layers if it has one
    path: str
    layer: int | None
    own: Shape  # of what it is of ours
    axes: tuple[int, ...] | None = None
    view: Shape | None = None
    stacked: bool = False

    @property
    def transposed(self) -> bool:
        """Whether it is a matrix of ours with its axes exchanged and no more."""
        return self.axes == TRANSPOSED and self.view is None

    @property
    def among(self) -> int:
        """How many rows there are, those of other leaves included."""
        return self.shape[1 if self.stacked else 0]

    def ours(self, foreign: np.ndarray) -> np.ndarray:
        """The piece of a foreign tensor, shaped as ours; a view of it where that can be."""
        rows = (foreign[self.layer] if self.stacked else foreign)[self.rows]
        back = rows.transpose(np.argsort(self.axes)) if self.axes else rows
        return back.reshape(self.own) if self.view else back

    def foreign(self, ours: np.ndarray) -> np.ndarray:
        """The rows of the foreign tensor that a leaf of ours, or its layer, is."""
        seen = ours.reshape(self.view) if self.view else ours
        return seen.transpose(self.axes) if self.axes else seen


class NamesError(ValueError):
    """A checkpoint does not hold the tensors its config promises."""


def linear(theirs: str, *ours: str) -> Table:
    """The weight and, where the model has one, the bias of a linear map stored as [out, in]."""
    weights, biases = (tuple(f"{leaf}/{part}" for leaf in ours) for part in "wb")
    return (
        Name(f"{theirs}.weight", weights, TRANSPOSED),
        Name(f"{theirs}.bias", biases),
    )


def prefixed(table: Table, prefixes: Mapping[str, str], ours: str = "") -> Table:
    """The table with the start of each foreign name exchanged, and one put before our paths."""

    def rename(name: str) -> str:
        for old, new in prefixes.items():
            if name.startswith(old):
                return new + name.removeprefix(old)
        return name

    return tuple(
        replace(each, theirs=rename(each.theirs), ours=tuple(ours + path for path in each.ours))
        for each in table
    )


def pieces(table: Table, shapes: Mapping[str, Shape]) -> tuple[Piece, ...]:
    """Every piece of every foreign tensor that a model with leaves of these shapes has.

    `shapes` are ours by slash path. Rules for leaves the model lacks have nothing to do.
    """
    found = [piece for name in table if name.ours[0] in shapes for piece in _split(name, shapes)]
    nameless = set(shapes) - {piece.path for piece in found}
    assert not nameless, f"the family's name table lacks {sorted(nameless)}"
    return tuple(found)


def _split(name: Name, shapes: Mapping[str, Shape]) -> Iterable[Piece]:
    numbered = "{layer}" in name.theirs
    layered = numbered or name.stacked
    ours = [shapes[path][1:] if layered else shapes[path] for path in name.ours]
    theirs = [_foreign_shape(name, shape) for shape in ours]
    stops = [sum(shape[0] for shape in theirs[: i + 1]) for i in range(len(theirs))]
    layers = range(shapes[name.ours[0]][0]) if layered else (None,)
    whole = ((len(layers),) if name.stacked else ()) + (stops[-1], *theirs[0][1:])
    form = dict(axes=name.axes, view=name.view, stacked=name.stacked)
    for layer in layers:
        foreign = name.theirs.replace("{layer}", str(layer)) if numbered else name.theirs
        for path, own, shape, stop in zip(name.ours, ours, theirs, stops, strict=True):
            yield Piece(foreign, whole, slice(stop - shape[0], stop), path, layer, own, **form)


def _foreign_shape(name: Name, shape: Shape) -> Shape:
    """The shape that a leaf of ours, or one layer of it, has among theirs."""
    seen = name.view or shape
    return tuple(seen[axis] for axis in name.axes) if name.axes else seen


def by_leaf(parts: Iterable[Piece]) -> dict[str, list[Piece]]:
    """Pieces by our path, in layer order."""
    grouped: dict[str, list[Piece]] = {}
    for piece in parts:
        grouped.setdefault(piece.path, []).append(piece)
    return grouped


def by_tensor(parts: Iterable[Piece]) -> dict[str, list[Piece]]:
    """Pieces by foreign name, in the order in which they are joined."""
    grouped: dict[str, list[Piece]] = {}
    for piece in parts:
        grouped.setdefault(piece.theirs, []).append(piece)
    return grouped


def choose(tables: Sequence[Table], found: Iterable[str]) -> Table:
    """The table that knows most of the names found: makers rename prefixes between releases."""
    generic = {re.sub(r"\d+", "{layer}", name) for name in found}
    return max(tables, key=lambda table: len(generic & {name.theirs for name in table}))


def matching(patterns: Sequence[str], found: Iterable[str]) -> list[str]:
    """The names that one of the patterns matches whole."""
    return [name for name in found if any(re.fullmatch(each, name) for each in patterns)]


def check(
    parts: Iterable[Piece],
    found: Mapping[str, Shape],
    other: Sequence[str] = (),
) -> None:
    """Raise one error that lists every missing, extra and misshapen tensor.

    `other` are patterns of foreign tensors that are known and not ours.
    """
    expected = {piece.theirs: piece.shape for piece in parts}
    missing = [name for name in expected if name not in found]
    known = expected.keys() | set(matching(other, found))
    extra = [name for name in found if name not in known]
    wrong = [name for name in expected if name in found and found[name] != expected[name]]
    if missing or extra or wrong:
        raise NamesError("\n".join(_report(expected, found, missing, extra, wrong)))


def _report(expected, found, missing, extra, wrong) -> Iterable[str]:
    yield (
        "the tensors are not those the config describes: "
        f"{len(missing)} missing, {len(extra)} not known, {len(wrong)} of another shape"
    )
    yield from _most(
        f"  missing    {name} {expected[name]}{_near(name, extra)}" for name in missing
    )
    yield from _most(f"  not known  {name} {found[name]}{_near(name, expected)}" for name in extra)
    yield from _most(
        f"  shape      {name} is {found[name]}, the config says {expected[name]}" for name in wrong
    )


def _most(lines: Iterable[str], most: int = 30) -> list[str]:
    lines = list(lines)
    cut = len(lines) - most
    return [*lines[:most], f"  … and {cut} more like these"] if cut > 0 else lines


def _near(name: str, others: Iterable[str]) -> str:
    # The same place under another prefix reads as the nearest name, whatever its length.
    tail = name.rsplit(".", 2)[-2:]
    candidates = [other for other in others if other.rsplit(".", 2)[-2:] == tail] or list(others)
    nearest = difflib.get_close_matches(name, candidates[:2000], n=1, cutoff=0.5)
    return f"  (nearest: {nearest[0]})" if nearest else ""
