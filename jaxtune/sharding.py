"""Where arrays live: a device mesh, and rules that give every leaf a `NamedSharding`."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxtune import quant, tree

AXES = ("data", "fsdp", "tensor")  # batches over the first two, weights over the last two

# Ours are [L, in, out]: the way in is split over `fsdp`, heads and hidden features over `tensor`.
RULES: tree.Rules = (
    (r"(.*/)?embed/w", PartitionSpec("tensor", "fsdp")),
    (r"(.*/)?head/w", PartitionSpec("fsdp", "tensor")),
    (r"(.*/)?layers/(attn/[qkv]|mlp/(gate|up))/w", PartitionSpec(None, "fsdp", "tensor")),
    (r"(.*/)?layers/(attn/o|mlp/down)/w", PartitionSpec(None, "tensor", "fsdp")),
    (r".*/(scale|b|bias)", PartitionSpec()),
    (r"(.*/)?(img/(patches/w|positions)|projector/w)", PartitionSpec()),
)
# What trains beside them: adapters lie as the weights that they add to, and an optimiser's arrays
# as what they are kept for, whose path theirs ends with. All else is small.
STATE_RULES: tree.Rules = (
    (r"(.*/)?layers/(attn/[qkv]|mlp/(gate|up))/w/a", PartitionSpec(None, "fsdp", None)),
    (r"(.*/)?layers/(attn/[qkv]|mlp/(gate|up))/w/b", PartitionSpec(None, None, "tensor")),
    (r"(.*/)?layers/(attn/o|mlp/down)/w/a", PartitionSpec(None, "tensor", None)),
    (r"(.*/)?layers/(attn/o|mlp/down)/w/b", PartitionSpec(None, None, "fsdp")),
    *RULES,
    (r".*", PartitionSpec()),
)
ROWS = PartitionSpec(("data", "fsdp"))  # of a batch


def make_mesh(axes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of named axes in the given order; one size may be -1 and takes what is left."""
    devices = jax.devices() if devices is None else list(devices)
    sizes = list(axes.values())
    described = ", ".join(f"{name}={size}" for name, size in axes.items())
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ValueError(f"mesh {described}: sizes are positive, and one at most may be -1")
    named = math.prod(size for size in sizes if size != -1)
    if -1 in sizes:
        sizes[sizes.index(-1)] = len(devices) // named
    if math.prod(sizes) != len(devices):
        raise ValueError(f"mesh {described} does not use the {len(devices)} devices there are")
    return Mesh(np.asarray(devices).reshape(sizes), tuple(axes))


def check_mesh(mesh: Any, rules: tree.Rules | None = None) -> None:
    """Refuse what is no mesh, axes that would split nothing, and axes that XLA may not split by."""
    made = "make one with jaxtune.make_mesh({'fsdp': -1})"
    if not isinstance(mesh, Mesh):
        raise ValueError(
            f"mesh is a {type(mesh).__name__}; a jax.sharding.Mesh was expected: {made}"
        )
    named = {name for _, spec in rules or () for entry in spec for name in _names(entry)}
    idle = [name for name in mesh.axis_names if name not in named | set(AXES)]
    if idle:
        raise ValueError(
            f"mesh axis {idle[0]!r} splits nothing: expected {', '.join(AXES)}, "
            "or rules that name it"
        )
    if AxisType.Explicit in mesh.axis_types:
        raise ValueError(f"the mesh has explicit axes, where AxisType.Auto is needed: {made}")


def shardings(
    shapes: Mapping[str, Any],
    mesh: Mesh,
    rules: tree.Rules = RULES,
) -> dict[str, Any]:
    """A sharding for every leaf, by slash path; `rules` are (pattern, PartitionSpec).

    In place of its shape, a quantised weight has its arrays, and gets a sharding for each.
    """
    specs = tree.match(rules, shapes, unused="allow")
    return {path: _of_leaf(shape, specs[path], mesh) for path, shape in shapes.items()}


def _of_leaf(shape: Any, spec: PartitionSpec, mesh: Mesh) -> Any:
    if not quant.is_quantized(shape):
        return NamedSharding(mesh, fitted(spec, shape, mesh))
    specs = quant.specs(shape, spec, partial(fitted, mesh=mesh))
    return jax.tree.map(partial(NamedSharding, mesh), specs)


def of_state(state: Any, mesh: Mesh) -> Any:
    """A sharding for every leaf of a train state, or of its shapes."""
    specs = tree.select(state, STATE_RULES, unused="allow")

    def place(leaf, spec):
        # An optimiser may keep an array of other dimensions than those of what it is kept for.
        spec = spec if len(spec) <= len(leaf.shape) else PartitionSpec()
        return NamedSharding(mesh, fitted(spec, leaf.shape, mesh))

    return jax.tree.map(place, state, specs)


def unsplit_leaves(shapes: Mapping[str, Any], mesh: Mesh, rules: tree.Rules = RULES) -> list[str]:
    """The leaves that rules would split and every device holds whole: no axis divides them."""
    specs = tree.match(rules, shapes, unused="allow")
    found = shardings(shapes, mesh, rules)

    def wanted(spec: PartitionSpec) -> bool:
        return any(mesh.shape.get(name, 1) > 1 for entry in spec for name in _names(entry))

    def whole(where: Any) -> bool:
        return not wanted((where.codes if quant.is_quantized(where) else where).spec)

    return [path for path in shapes if wanted(specs[path]) and whole(found[path])]


def fitted(spec: PartitionSpec, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """The spec without the axes that the mesh lacks or that do not divide their dimension."""
    if len(spec) > len(shape):
        raise ValueError(f"{spec} has more entries than the shape {shape} has dimensions")
    kept = []
    for size, entry in zip(shape, spec, strict=False):
        names = tuple(name for name in _names(entry) if name in mesh.shape)
        parts = math.prod(mesh.shape[name] for name in names)
        fits = names and size % parts == 0
        kept.append((names if len(names) > 1 else names[0]) if fits else None)
    return PartitionSpec(*kept)


def _names(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes in one entry of a PartitionSpec."""
    return entry if isinstance(entry, tuple) else (entry,) if entry else ()
