"""Computes how a mesh would shard the leaves of a checkpoint, without needing its devices."""

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
    """How one leaf is sharded over a mesh."""

    axes: tuple[str | tuple[str, ...] | None, ...]  # mesh axes that split each dimension
    undivided: tuple[str, ...]  # reasons why dimensions that rules would split are whole
    bytes_per_device: int


def abstract_mesh(axes: Mapping[str, int]) -> AbstractMesh:
    """Returns a mesh without devices, which is enough to compute what each would hold."""
    unknown = [name for name in axes if name not in sharding.AXES]
    if unknown:
        raise ValueError(
            f"unknown mesh axis {unknown[0]!r}: expected one of {', '.join(sharding.AXES)}"
        )
    wrong = [f"{name}={size}" for name, size in axes.items() if size < 1]
    if wrong:
        raise ValueError(f"mesh {wrong[0]}: expected a size of 1 or more")
    return AbstractMesh(tuple(axes.values()), tuple(axes))


def placements(held: Mapping[str, Any], mesh: AbstractMesh) -> dict[str, Placement]:
    """Returns the placement of every leaf, given its shape and dtype or its quantised arrays."""
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
    """Returns the mesh axes that split each dimension of a leaf; if quantised, of its weight."""
    if not is_quantized(where):
        return (*where.spec, *[None] * (dimensions - len(where.spec)))
    # Codes are [..., blocks, block, out]: a split of either `blocks` or `block` splits the inputs.
    *layers, blocks, block, outputs = where.codes.spec
    return (*layers, blocks or block, outputs)


def _device_bytes(leaf: Any, where: Any) -> int:
    """Returns the bytes of a leaf's arrays that one device holds."""

    def bits_of(array: Any, placed: Any) -> int:
        # In bits: a device packs two 4-bit codes into a byte, but their dtype has itemsize 1.
        size = math.prod(placed.shard_shape(array.shape))
        return size * jax.dtypes.itemsize_bits(array.dtype)

    return sum(jax.tree.leaves(jax.tree.map(bits_of, leaf, where))) // 8


def _whole_because(entry: str | tuple | None, mesh: AbstractMesh, size: int) -> str | None:
    """Returns why an unsplit dimension could not be split: `fsdp=8 does not divide 211`.

    Returns None if no rule would split it over more than one device.
    """
    names = entry if isinstance(entry, tuple) else (entry,)
    axes = [f"{name}={mesh.shape[name]}" for name in names if mesh.shape.get(name, 1) > 1]
    return f"{', '.join(axes)} does not divide {size:,}" if axes else None
