"""What quantising a checkpoint saves: sizes from its headers, and what was measured of it."""

import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import jax.numpy as jnp

from jaxtune.export.distance import Distance
from jaxtune.families import names
from jaxtune.quant import KINDS, MADE, kinds, nbytes

PLAIN = ("float32", "bfloat16")
REST = "bfloat16"  # what is not quantised
Shapes = Mapping[str, names.Shape]


@dataclass(frozen=True)
class Size:
    """What a model takes with its linear maps held as a kind; beside a quantised one, see `REST`"""

    kind: str
    linear_bytes: int
    linear_bits: float  # a weight
    bytes: int
    bits: float  # a parameter


@dataclass(frozen=True)
class Error:
    """How far a quantised weight is from its original; errors of several leaves add up."""

    values: int
    absolute: float  # sum of |error|
    squares: float  # sum of error²
    norm: float  # sum of weight²

    def __add__(self, other: "Error") -> "Error":
        return Error(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    @property
    def mean_absolute(self) -> float:
        """The mean of |error|."""
        return self.absolute / self.values

    @property
    def relative(self) -> float:
        """The error's norm over the weight's."""
        return math.sqrt(self.squares / self.norm) if self.norm else 0.0


@dataclass(frozen=True)
class Leaf:
    """A leaf, its layers together, when quantised."""

    path: str
    bits: float  # a weight
    mean_absolute: float  # error
    relative: float  # the error's norm over the weight's
    layers: tuple[float, ...]  # the same of each
    to_keep: int  # bytes more if it is not quantised
    kl: float | None  # of predictions, if this leaf alone is quantised


@dataclass(frozen=True)
class Advice:
    """Leaves that are worth their bytes unquantised, and what keeping them gives."""

    keep: tuple[str, ...]
    bytes: int  # more
    predictions: Distance
    quant: tuple[tuple[str, str | None], ...]  # rules, as `load` takes them


@dataclass(frozen=True)
class Measured:
    """What one kind does to the weights and, with a text, to predictions."""

    kind: str
    mean_absolute: float
    relative: float
    leaves: tuple[Leaf, ...]
    predictions: Distance | None
    advice: Advice | None


@dataclass(frozen=True)
class QuantReport:
    """A checkpoint's sizes, and what was measured of the kinds that were asked for."""

    parameters: int
    linear: int  # of them, those that are quantised
    sizes: tuple[Size, ...]
    measured: tuple[Measured, ...]
    text: str  # what predictions were compared on, or why they were not


def sizes(shapes: Shapes) -> tuple[Size, ...]:
    """What leaves of these shapes take as each kind."""
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
    return nbytes(shape, kind) if kind in KINDS else math.prod(shape) * jnp.dtype(kind).itemsize


def linear_maps(paths: Collection[str]) -> list[str]:
    """The leaves that are quantised where rules do not say otherwise."""
    return list(kinds(paths, MADE[0]))


def check_kinds(asked: Sequence[str], text: str | os.PathLike | None) -> None:
    """Stop at a kind that is none, and at a text that nothing is measured on."""
    for kind in asked:
        if kind not in MADE:
            raise ValueError(f"quant {kind!r}: expected one of {', '.join(MADE)}")
    if text is not None and not asked:
        raise ValueError("a text is for measuring: say what to quantise to, as in --quant=nf4")


def read_text(file: str | os.PathLike) -> str:
    """A text to compare predictions on."""
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8")
    except UnicodeDecodeError as problem:
        raise ValueError(f"{file} is no text in UTF-8 ({problem})") from None
    if not text.strip():
        raise ValueError(f"{file} is empty: some text to compare predictions on was expected")
    return text
