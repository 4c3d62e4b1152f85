"""Describes the leaves of a tree of arrays for people: shapes, dtypes, sizes, and which train."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxtune import quant, sharding, tree
from jaxtune.display.columns import size_text
from jaxtune.display.errors import UserError
from jaxtune.display.escapes import one_line, plural, shown
from jaxtune.display.tables import Table, group
from jaxtune.training.step import TrainState

COLUMNS = ("leaf", "shape", "dtype", "parameters", "bytes")
NUMBERS = ("parameters", "bytes")  # columns aligned to the right
FEW = 12  # a group of no more leaves is shown open
NO_ARRAYS = "OSU"  # kinds of NumPy dtypes that hold no numbers


@dataclass(frozen=True)
class Leaf:
    """One array of a tree, or one quantised weight."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    kind: str  # its dtype, or the kind of its quantisation
    bytes: int
    trains: bool = False

    def row(self, start: int = 0) -> dict[str, str]:
        """Returns the texts of the leaf by column, its path without the first `start` names."""
        return {
            "leaf": "/".join(self.path[start:]) or "(the array)",
            "shape": " × ".join(map(str, self.shape)) or "scalar",
            "dtype": self.kind,
            "parameters": f"{math.prod(self.shape):,}",
            "bytes": size_text(self.bytes),
            "trains": "trains" if self.trains else "",
        }


def described(variables: Any) -> list[Leaf]:
    """Returns the leaves of a tree of arrays, of which only shapes and dtypes are read.

    Raises UserError for a leaf that is no array of numbers.
    """
    return [_leaf(path, leaf, False) for path, leaf in _by_path(variables)]


def of_state(state: TrainState) -> list[Leaf]:
    """Returns the leaves of the variables of a train state, which know whether they train."""
    trained = {path for path, _ in _by_path(state.trainable)}
    return [_leaf(path, leaf, path in trained) for path, leaf in _by_path(state.variables)]


def parameters(leaves: Sequence[Leaf]) -> int:
    """Returns the number of parameters of some leaves."""
    return sum(math.prod(leaf.shape) for leaf in leaves)


def total(leaves: Sequence[Leaf]) -> dict[str, str]:
    """Returns the texts of the last row of a table of leaves, by column."""
    size = size_text(sum(leaf.bytes for leaf in leaves))
    return {"leaf": "total", "parameters": f"{parameters(leaves):,}", "bytes": size}


def sizes(leaves: Sequence[Leaf]) -> str:
    """Returns a phrase with the number of leaves, their parameters and their bytes."""
    many = "1 leaf" if len(leaves) == 1 else f"{len(leaves):,} leaves"
    return f"{many}, {plural(parameters(leaves), 'parameter')}, {total(leaves)['bytes']}"


def grouped(leaves: Sequence[Leaf], columns: Sequence[str], start: int = 0) -> str:
    """Returns HTML of leaves: a table, then a collapsible group for each name of several leaves.

    Args:
      leaves: Leaves in tree order.
      columns: Columns of the tables, of those of `Leaf.row`.
      start: Number of names at the start of the paths that all leaves share and that are left out.

    Returns:
      The HTML, in which leaves that train stand out.
    """
    single, groups = [], []
    for _, each in itertools.groupby(leaves, lambda leaf: leaf.path[start : start + 1]):
        members = list(each)
        if len(members) == 1:
            single += members
            continue
        common = _shared([leaf.path for leaf in members])
        title = f"{'/'.join(members[0].path[start:common])}: {sizes(members)}"
        opened = start == 0 or len(members) <= FEW
        groups.append(group(title, grouped(members, columns, common), opened=opened))
    strong = [number for number, leaf in enumerate(single) if leaf.trains]
    rows = [leaf.row(start) for leaf in single]
    table = Table(columns, rows, NUMBERS, strong).html() if rows else ""
    return table + "".join(groups)


def _shared(paths: Sequence[tuple[str, ...]]) -> int:
    """Returns the number of names at their start that all paths share."""
    same = (len(set(names)) == 1 for names in zip(*paths, strict=False))
    return sum(itertools.takewhile(bool, same))


def _by_path(value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(value, is_leaf=quant.is_quantized)
    for keys, leaf in leaves:
        yield tuple(tree.slash_path([key]) for key in keys), leaf


def _leaf(path: tuple[str, ...], leaf: Any, trains: bool) -> Leaf:
    if quant.is_quantized(leaf):
        return Leaf(path, leaf.shape, leaf.kind, sharding.total_bytes(leaf), trains)
    if not _is_array(leaf):
        name = f"the leaf {'/'.join(path)}" if path else "it"
        raise UserError(f"{name} is no array of numbers but {one_line(shown(leaf))}")
    return Leaf(path, leaf.shape, str(leaf.dtype), sharding.total_bytes(leaf), trains)


def _is_array(leaf: Any) -> bool:
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        return False
    return not isinstance(leaf.dtype, np.dtype) or leaf.dtype.kind not in NO_ARRAYS
