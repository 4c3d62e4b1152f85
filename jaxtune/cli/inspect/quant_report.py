"""The report on quantising a checkpoint: sizes from its headers, and measurements."""

import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import astuple, dataclass

import jax.numpy as jnp

from jaxtune.display.errors import UserError
from jaxtune.export.distance import Distance
from jaxtune.families import names
from jaxtune.files.fetched import local
from jaxtune.quant import KINDS, MADE, kinds, nbytes

PLAIN = ("float32", "bfloat16")
REST = "bfloat16"  # dtype of the leaves that are not quantised
Shapes = Mapping[str, names.Shape]


@dataclass(frozen=True)
class Size:
    """The size of a model with its linear maps in one kind, or all of it in a plain dtype.

    The other leaves of a model with quantised linear maps are counted in `REST`.
    """

    kind: str
    linear_bytes: int
    linear_bits: float  # per weight, scales included
    bytes: int  # of the whole model
    bits: float  # per parameter


@dataclass(frozen=True)
class Error:
    """Sums over the errors of a quantised weight; those of several weights can be added."""

    values: int
    absolute: float  # sum of |error|
    squares: float  # sum of error²
    norm: float  # sum of weight²

    def __add__(self, other: "Error") -> "Error":
        return Error(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    @property
    def mean_absolute(self) -> float:
        """Mean absolute error of a value."""
        return self.absolute / self.values

    @property
    def relative(self) -> float:
        """Norm of the error divided by the norm of the weight."""
        return math.sqrt(self.squares / self.norm) if self.norm else 0.0


@dataclass(frozen=True)
class Leaf:
    """Measurements of one quantised leaf, over all its layers."""

    path: str
    bits: float  # per weight
    mean_absolute: float  # mean of |error|
    relative: float  # norm of the error over that of the weight
    layers: tuple[float, ...]  # the relative error of each layer
    to_keep: int  # additional bytes if it is kept in `REST`
    kl: float | None  # of predictions with only this leaf quantised; None if not compared


@dataclass(frozen=True)
class Advice:
    """Leaves that are suggested to be kept unquantised, with the cost and the effect."""

    keep: tuple[str, ...]
    bytes: int  # additional
    predictions: Distance  # with these leaves kept
    quant: tuple[tuple[str, str | None], ...]  # rules for `load` and the config


@dataclass(frozen=True)
class Measured:
    """Measurements of one kind: errors of the weights and, with a text, of predictions."""

    kind: str
    mean_absolute: float  # over all quantised weights, as `relative` is
    relative: float
    leaves: tuple[Leaf, ...]
    predictions: Distance | None
    advice: Advice | None


@dataclass(frozen=True)
class QuantReport:
    """The sizes of a checkpoint, and the measurements of the requested kinds."""

    parameters: int
    linear: int  # parameters in the linear maps of layers, which can be quantised
    sizes: tuple[Size, ...]
    measured: tuple[Measured, ...]
    text: str  # what predictions were compared on, or why they were not


def sizes(shapes: Shapes) -> tuple[Size, ...]:
    """Returns the size of a model with these leaf shapes, for each kind."""
    return tuple(_size(shapes, kind) for kind in (*PLAIN, "int8", "int4", "nf4", "nf4-double"))


def _size(shapes: Shapes, kind: str) -> Size:
    linear = linear_maps(shapes)
    held = {path: kind if path in linear or kind in PLAIN else REST for path in shapes}
    taken = {path: held_bytes(shape, held[path]) for path, shape in shapes.items()}
    inside = sum(taken[path] for path in linear)
    weights = sum(math.prod(shapes[path]) for path in linear)
    parameters = sum(map(math.prod, shapes.values()))
    whole = sum(taken.values())
    return Size(kind, inside, 8 * inside / weights, whole, 8 * whole / parameters)


def held_bytes(shape: names.Shape, kind: str) -> int:
    """Returns the bytes of a leaf in a quantised kind or a plain dtype."""
    return nbytes(shape, kind) if kind in KINDS else math.prod(shape) * jnp.dtype(kind).itemsize


def linear_maps(paths: Collection[str]) -> list[str]:
    """Returns the paths of leaves that a kind quantises when no rules are given."""
    return list(kinds(paths, MADE[0]))


def check_kinds(asked: Sequence[str], text: str | os.PathLike | None) -> None:
    """Raises ValueError for an unknown kind, or for a text without a kind to measure."""
    for kind in asked:
        if kind not in MADE:
            raise UserError(f"quant {kind!r}: expected one of {', '.join(MADE)}")
    if text is not None and not asked:
        raise UserError("a text is only used to measure kinds: name one, as in --quant=nf4")


def read_text(file: str | os.PathLike) -> str:
    """Reads a file with the text to compare predictions on."""
    try:
        text = local(file).read_text(encoding="utf-8")
    except UnicodeDecodeError as problem:
        raise UserError(f"{file} is not UTF-8 text ({problem})") from None
    if not text.strip():
        raise UserError(f"{file} is empty: expected text to compare predictions on")
    return text
