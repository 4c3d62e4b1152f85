"""How the leaves of a checkpoint would lie on a mesh whose devices need not be there."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AbstractMesh

from jaxtune import sharding, tree
from jaxtune.quant import is_quantized


@dataclass(frozen=True)
class Placement:
    """How one leaf lies on a mesh."""

    axes: tuple[str | tuple[str, ...] | None, ...]  # mesh axes that split each dimension
    undivided: tuple[str, ...]  # what the rules ask for and the shape does not allow
    bytes_per_device: int


def abstract_mesh(axes: Mapping[str, int]) -> AbstractMesh:
    """A mesh of no devices, which is enough to tell what each would hold."""
    unknown = [name for name in axes if name not in sharding.AXES]
    if unknown:
        raise ValueError(
            f"mesh axis {unknown[0]!r} is not known: expected {', '.join(sharding.AXES)}"
        )
    wrong = [f"{name}={size}" for name, size in axes.items() if size < 1]
    if wrong:
        raise ValueError(f"mesh {wrong[0]}: a size of 1 or more was expected")
    return AbstractMesh(tuple(axes.values()), tuple(axes))


def placements(held: Mapping[str, Any], mesh: AbstractMesh) -> dict[str, Placement]:
    rules = tree.match(sharding.RULES, held, unused="allow")
    found = {}
    shapes = {path: leaf if is_quantized(leaf) else leaf.shape for path, leaf in held.items()}
    for path, where in sharding.shardings(shapes, mesh).items():
        leaf = held[path]
        axes = _axes(where, leaf.ndim)
        wanted = zip(leaf.shape, rules[path], axes, strict=False)
        undivided = [
            _whole_because(entry, mesh, size) for size, entry, got in wanted if got is None
        ]
        found[path] = Placement(
            axes=axes,
            undivided=tuple(filter(None, undivided)),
            bytes_per_device=_device_bytes(leaf, where),
        )
    return found


def _axes(where: Any, dimensions: int) -> tuple[str | tuple[str, ...] | None, ...]:
    """The mesh axes that split each dimension of a leaf; if it is quantised, of its weight."""
    if not is_quantized(where):
        return (*where.spec, *[None] * (dimensions - len(where.spec)))
    # Of codes [..., blocks, block, out], either of two may be split: together they are the inputs.
    *layers, blocks, block, outputs = where.codes.spec
    return (*layers, blocks or block, outputs)


def _device_bytes(leaf: Any, where: Any) -> int:
    """What a device holds of a leaf's arrays."""

    def bits_of(array: Any, placed: Any) -> int:
        # By bits: a device holds two 4-bit codes in a byte, where their dtype says one.
        size = math.prod(placed.shard_shape(array.shape))
        return size * jax.dtypes.itemsize_bits(array.dtype)

    return sum(jax.tree.leaves(jax.tree.map(bits_of, leaf, where))) // 8


def _whole_because(entry: str | tuple | None, mesh: AbstractMesh, size: int) -> str | None:
    """Why a dimension is left whole, where a rule asks for more: `fsdp=8 does not divide 211`."""
    names = entry if isinstance(entry, tuple) else (entry,)
    axes = [f"{name}={mesh.shape[name]}" for name in names if mesh.shape.get(name, 1) > 1]
    return f"{', '.join(axes)} does not divide {size:,}" if axes else None
