"""Device meshes, and rules over slash paths that give every leaf a `NamedSharding`."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxtune import quant, tree

AXES = ("data", "fsdp", "tensor")  # batches split over the first two, weights over the last two

# Layer weights are [L, in, out]. The model width, which is `in` or `out`, is sharded over `fsdp`,
# and heads, hidden features and the vocabulary over `tensor`.
RULES: tree.Rules = (
    (r"(.*/)?embed/w", PartitionSpec("tensor", "fsdp")),
    (r"(.*/)?head/w", PartitionSpec("fsdp", "tensor")),
    (r"(.*/)?layers/(attn/[qkv]|mlp/(gate|up))/w", PartitionSpec(None, "fsdp", "tensor")),
    (r"(.*/)?layers/(attn/o|mlp/down)/w", PartitionSpec(None, "tensor", "fsdp")),
    (r".*/(scale|b|bias)", PartitionSpec()),
    (r"(.*/)?(img/(patches/w|positions)|projector/w)", PartitionSpec()),
)
# Rules for a whole train state. Adapters are sharded like the weights that they add to: `a` over
# its input, `b` over its output. An optimiser's array matches the rule of its parameter, as its
# path ends with that of the parameter. All other leaves are small and replicated.
STATE_RULES: tree.Rules = (
    (r"(.*/)?layers/(attn/[qkv]|mlp/(gate|up))/w/a", PartitionSpec(None, "fsdp", None)),
    (r"(.*/)?layers/(attn/[qkv]|mlp/(gate|up))/w/b", PartitionSpec(None, None, "tensor")),
    (r"(.*/)?layers/(attn/o|mlp/down)/w/a", PartitionSpec(None, "tensor", None)),
    (r"(.*/)?layers/(attn/o|mlp/down)/w/b", PartitionSpec(None, None, "fsdp")),
    *RULES,
    (r".*", PartitionSpec()),
)
ROWS = PartitionSpec(("data", "fsdp"))  # the leading axis of a batch


def make_mesh(axes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """Returns a mesh with named axes in the given order, over all devices by default.

    One size may be -1: that axis takes all devices that the other axes leave. Raises ValueError if
    the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = list(axes.values())
    described = ", ".join(f"{name}={size}" for name, size in axes.items())
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ValueError(f"mesh {described}: expected positive sizes, and -1 at most once")
    named = math.prod(size for size in sizes if size != -1)
    if -1 in sizes:
        sizes[sizes.index(-1)] = len(devices) // named
    if math.prod(sizes) != len(devices):
        raise ValueError(
            f"mesh {described}: expected sizes whose product is the device count, {len(devices)}"
        )
    return Mesh(np.asarray(devices).reshape(sizes), tuple(axes))


def check_mesh(mesh: Any, rules: tree.Rules | None = None) -> None:
    """Raises ValueError for a mesh that cannot be used.

    That is anything but a `jax.sharding.Mesh`, a mesh with an axis that is neither in `AXES` nor
    named by a rule and so would shard nothing, or one with axes of type `AxisType.Explicit`, over
    which XLA may not choose shardings.
    """
    made = "make one with jaxtune.make_mesh({'fsdp': -1})"
    if not isinstance(mesh, Mesh):
        raise ValueError(f"mesh is a {type(mesh).__name__}; expected a jax.sharding.Mesh: {made}")
    named = {name for _, spec in rules or () for entry in spec for name in _names(entry)}
    idle = [name for name in mesh.axis_names if name not in named | set(AXES)]
    if idle:
        raise ValueError(
            f"mesh axis {idle[0]!r} shards nothing: expected {', '.join(AXES)}, or an axis that "
            "the rules name"
        )
    if AxisType.Explicit in mesh.axis_types:
        raise ValueError(f"the mesh has explicit axes; expected AxisType.Auto: {made}")


def shardings(
    shapes: Mapping[str, Any],
    mesh: Mesh,
    rules: tree.Rules = RULES,
) -> dict[str, Any]:
    """Returns a sharding for every leaf, by slash path.

    `shapes` holds a shape by path, or for a quantised weight a `Quantized` of its arrays, which
    gets a `Quantized` of shardings. `rules` are (pattern, PartitionSpec). Mesh axes that do not
    divide their dimension are left out.
    """
    specs = tree.match(rules, shapes, unused="allow")
    return {path: _of_leaf(shape, specs[path], mesh) for path, shape in shapes.items()}


def _of_leaf(shape: Any, spec: PartitionSpec, mesh: Mesh) -> Any:
    if not quant.is_quantized(shape):
        return NamedSharding(mesh, fitted(spec, shape, mesh))
    specs = quant.specs(shape, spec, partial(fitted, mesh=mesh))
    return jax.tree.map(partial(NamedSharding, mesh), specs)


def of_state(state: Any, mesh: Mesh) -> Any:
    """Returns a sharding for every leaf of a train state, or of a tree of its shapes."""
    specs = tree.select(state, STATE_RULES, unused="allow")

    def place(leaf, spec):
        # An optimiser's array with fewer dimensions than its parameter's spec is replicated.
        spec = spec if len(spec) <= len(leaf.shape) else PartitionSpec()
        return NamedSharding(mesh, fitted(spec, leaf.shape, mesh))

    return jax.tree.map(place, state, specs)


def unsplit_leaves(shapes: Mapping[str, Any], mesh: Mesh, rules: tree.Rules = RULES) -> list[str]:
    """Returns the paths of leaves that the rules would shard, but that every device holds whole.

    These are leaves of which no dimension is divisible by the mesh axes that its rule names.
    """
    specs = tree.match(rules, shapes, unused="allow")
    found = shardings(shapes, mesh, rules)

    def wanted(spec: PartitionSpec) -> bool:
        return any(mesh.shape.get(name, 1) > 1 for entry in spec for name in _names(entry))

    def whole(where: Any) -> bool:
        return not wanted((where.codes if quant.is_quantized(where) else where).spec)

    return [path for path in shapes if wanted(specs[path]) and whole(found[path])]


def fitted(spec: PartitionSpec, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Returns a spec without the axes that the mesh lacks or that do not divide their dimension.

    Several axes in one entry are dropped together if their product does not divide the dimension.
    """
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
    """Returns the mesh axes in one entry of a PartitionSpec."""
    return entry if isinstance(entry, tuple) else (entry,) if entry else ()
