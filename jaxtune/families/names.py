"""Mapping between the tensors of published checkpoints and our leaves, in both directions.

Our leaves stack the layers on axis 0 and hold linear weights as [in, out]. A table maps each
foreign tensor to the leaf or leaves that it stores; it has no sizes, as shapes come from the model.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from jaxtune.display.errors import UserError

Shape = tuple[int, ...]
MOST_LISTED = 8  # lines of an error message, besides its title
NEAR = 200  # names that a wrong one is compared with


@dataclass(frozen=True)
class Name:
    """A foreign tensor's name, with `{layer}` for the layer's number, and our leaf or leaves.

    If there are several leaves, the foreign tensor is their concatenation along its first axis.
    `axes` is None if the axes have the same order, `view` if our leaf needs no reshape.
    """

    theirs: str
    ours: tuple[str, ...]
    axes: tuple[int, ...] | None = None  # the axis of ours that each of theirs is
    view: Shape | None = None  # the shape ours is given before its axes are permuted
    stacked: bool = False  # one tensor holds all layers, on a leading axis


TRANSPOSED = (1, 0)  # `Name.axes` of a linear map that is stored as [out, in]
Table = tuple[Name, ...]


@dataclass(frozen=True)
class Piece:
    """Rows of one foreign tensor that hold one of our leaves, or one layer of it.

    Of a foreign tensor with all layers stacked, they are rows of one layer.
    """

    theirs: str
    shape: Shape  # of the whole foreign tensor
    rows: slice  # along its first axis, not counting that of stacked layers
    path: str
    layer: int | None
    own: Shape  # of our leaf, or of its one layer
    axes: tuple[int, ...] | None = None
    view: Shape | None = None
    stacked: bool = False

    @property
    def transposed(self) -> bool:
        """Whether the foreign rows are a matrix of ours transposed, without another reshape."""
        return self.axes == TRANSPOSED and self.view is None

    @property
    def among(self) -> int:
        """Number of rows of the foreign tensor (or its layer), including those of other leaves."""
        return self.shape[1 if self.stacked else 0]

    def ours(self, foreign: np.ndarray) -> np.ndarray:
        """Returns this piece of a foreign tensor in our layout, as a view if NumPy can make one."""
        rows = (foreign[self.layer] if self.stacked else foreign)[self.rows]
        back = rows.transpose(np.argsort(self.axes)) if self.axes else rows
        return back.reshape(self.own) if self.view else back

    def index(self, places: np.ndarray) -> tuple[np.ndarray, ...]:
        """Returns where elements lie in the foreign tensor, given their places in our flat layout.

        With it, single values are read without the others, whatever the layout.
        """
        viewed = np.unravel_index(places, self.view or self.own)
        first, *rest = (viewed[axis] for axis in self.axes) if self.axes else viewed
        layer = (np.full_like(first, self.layer),) if self.stacked else ()
        return (*layer, first + self.rows.start, *rest)

    def foreign(self, ours: np.ndarray) -> np.ndarray:
        """Returns our leaf, or one layer of it, in the layout of the foreign tensor's rows."""
        viewed = ours.reshape(self.view) if self.view else ours
        return viewed.transpose(self.axes) if self.axes else viewed


class NamesError(UserError):
    """The tensors of a checkpoint do not match its config."""


def linear(theirs: str, *ours: str) -> Table:
    """Returns the names of the weight and the bias of a linear map that is stored as [out, in].

    The bias has no effect for models without one. Several `ours` are stored fused, in this order.
    """
    weights, biases = (tuple(f"{leaf}/{part}" for leaf in ours) for part in "wb")
    return (
        Name(f"{theirs}.weight", weights, TRANSPOSED),
        Name(f"{theirs}.bias", biases),
    )


def prefixed(table: Table, prefixes: Mapping[str, str], ours: str = "") -> Table:
    """Returns a table with prefixes of the foreign names replaced, and `ours` put before our paths.

    `prefixes` maps old prefixes to new ones; the first match replaces, and other names stay.
    """

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
    """Returns every piece of every foreign tensor of a model with leaves of these shapes.

    `shapes` are those of our leaves by slash path. Names whose leaves the model lacks are ignored.
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
    """Returns the shape in the foreign layout of a leaf of ours, or of one layer of it."""
    seen = name.view or shape
    return tuple(seen[axis] for axis in name.axes) if name.axes else seen


def by_leaf(parts: Iterable[Piece]) -> dict[str, list[Piece]]:
    """Groups pieces by the path of our leaf, keeping layer order."""
    grouped: dict[str, list[Piece]] = {}
    for piece in parts:
        grouped.setdefault(piece.path, []).append(piece)
    return grouped


def by_tensor(parts: Iterable[Piece]) -> dict[str, list[Piece]]:
    """Groups pieces by the foreign tensor's name, in the order in which they are concatenated."""
    grouped: dict[str, list[Piece]] = {}
    for piece in parts:
        grouped.setdefault(piece.theirs, []).append(piece)
    return grouped


def choose(tables: Sequence[Table], found: Iterable[str]) -> Table:
    """Returns the table that has most of the names found in a checkpoint.

    A family has several tables because its makers rename prefixes between releases.
    """
    generic = {re.sub(r"\d+", "{layer}", name) for name in found}
    return max(tables, key=lambda table: len(generic & {name.theirs for name in table}))


def matching(patterns: Sequence[str], found: Iterable[str]) -> list[str]:
    """Returns the names that one of the patterns matches in full."""
    return [name for name in found if any(re.fullmatch(each, name) for each in patterns)]


def check(
    parts: Iterable[Piece],
    found: Mapping[str, Shape],
    other: Sequence[str] = (),
) -> None:
    """Raises `NamesError` if a checkpoint's tensors are not those that the model needs.

    The message lists the first missing, unknown and misshapen tensors. `found` are the
    shapes of the checkpoint's tensors; `other` are patterns of known tensors that are not ours.
    """
    expected = {piece.theirs: piece.shape for piece in parts}
    missing = [name for name in expected if name not in found]
    known = expected.keys() | set(matching(other, found))
    extra = [name for name in found if name not in known]
    wrong = [name for name in expected if name in found and found[name] != expected[name]]
    if missing or extra or wrong:
        raise NamesError(_report(expected, found, missing, extra, wrong))


def listed(title: str, *groups: Sequence[str]) -> str:
    """Returns an error message: a title and the first lines of each group, `MOST_LISTED` in all."""
    given = [group for group in groups if group]
    most = MOST_LISTED // max(1, len(given))
    shown = [line for group in given for line in group[:most]]
    more = sum(map(len, given)) - len(shown)
    return "\n".join([title, *shown, *([f"  … and {more} more like these"] * (more > 0))])


def _report(expected, found, missing, extra, wrong) -> str:
    def hint(number: int, name: str, others: Iterable[str]) -> str:
        return near(name, others) if number < MOST_LISTED else ""

    return listed(
        "the tensors do not match the config: "
        f"{len(missing)} missing, {len(extra)} unknown, {len(wrong)} with a wrong shape",
        [f"  missing  {x} {expected[x]}{hint(i, x, extra)}" for i, x in enumerate(missing)],
        [f"  unknown  {x} {found[x]}{hint(i, x, expected)}" for i, x in enumerate(extra)],
        [f"  shape    {x} is {found[x]}, the config expects {expected[x]}" for x in wrong],
    )


def near(name: str, others: Iterable[str]) -> str:
    """Returns a hint at the name that is most like another one, or "" if none is like it."""
    # The same module under another prefix is the best suggestion, however long the prefix.
    tail = name.rsplit(".", 2)[-2:]
    candidates = [other for other in others if other.rsplit(".", 2)[-2:] == tail] or list(others)
    nearest = difflib.get_close_matches(name[:200], candidates[:NEAR], n=1, cutoff=0.5)
    return f"  (nearest: {nearest[0]})" if nearest else ""
