"""Computes how a mesh would shard the leaves of a checkpoint, without needing its devices."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jax.sharding import AbstractMesh

from jaxtune import sharding
from jaxtune.display.errors import UserError
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
        raise UserError(
            f"unknown mesh axis {unknown[0]!r}: expected one of {', '.join(sharding.AXES)}"
        )
    wrong = [f"{name}={size}" for name, size in axes.items() if size < 1]
    if wrong:
        raise UserError(f"mesh {wrong[0]}: expected a size of 1 or more")
    return AbstractMesh(tuple(axes.values()), tuple(axes))


def placements(held: Mapping[str, Any], mesh: AbstractMesh) -> dict[str, Placement]:
    """Returns the placement of every leaf, given its shape and dtype or its quantised arrays."""
    found = {}
    shapes = {path: leaf if is_quantized(leaf) else leaf.shape for path, leaf in held.items()}
    whole = sharding.undivided(shapes, mesh)
    for path, where in sharding.shardings(shapes, mesh).items():
        leaf = held[path]
        reasons = (
            f"{', '.join(f'{name}={mesh.shape[name]}' for name in each.axes)} does not divide "
            f"{each.size:,}"
            for each in whole.get(path, ())
        )
        found[path] = Placement(
            axes=sharding.split_axes(where, leaf.ndim),
            undivided=tuple(reasons),
            bytes_per_device=sharding.device_bytes(sharding.described(leaf, where)),
        )
    return found
