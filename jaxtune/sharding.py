"""Device meshes, and rules over slash paths that give every leaf a `NamedSharding`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from jaxtune import quant, tree
from jaxtune.display.errors import UserError

AXES = ("data", "fsdp", "tensor")  # batches split over the first two, weights over the last two
WEIGHTS = ("tensor", "fsdp")  # a dimension that both of them split

# Layer weights are [L, in, out]. The model width, which is `in` or `out`, is sharded over `fsdp`,
# and heads, hidden features and the vocabulary over `tensor`; a head's vocabulary over both.
RULES: tree.Rules = (
    (r"(.*/)?embed/w", PartitionSpec("tensor", "fsdp")),
    (r"(.*/)?head/w", PartitionSpec(None, WEIGHTS)),
    (r"(.*/)?layers/(attn/[qkv]|mlp/(gate|up))/w", PartitionSpec(None, "fsdp", "tensor")),
    (r"(.*/)?layers/(attn/o|mlp/down)/w", PartitionSpec(None, "tensor", "fsdp")),
    (r".*/(scale|b|bias)", PartitionSpec()),
    (r"(.*/)?(img/(patches/w|positions)|projector/w)", PartitionSpec()),
)
# Rules for a whole train state. Adapters are sharded like the weights that they add to, `a` over
# its input and `b` over its output, and what would be sharded over `tensor` alone over `fsdp` too,
# so that every device holds its part of the adapters and their moments. An optimiser's array
# matches the rule of its parameter, as its path ends with that of the parameter. All other leaves
# are small and replicated.
STATE_RULES: tree.Rules = (
    (r"(.*/)?layers/(attn/[qkv]|mlp/(gate|up))/w/a", PartitionSpec(None, "fsdp", None)),
    (r"(.*/)?layers/(attn/[qkv]|mlp/(gate|up))/w/b", PartitionSpec(None, None, WEIGHTS)),
    (r"(.*/)?layers/(attn/o|mlp/down)/w/a", PartitionSpec(None, WEIGHTS, None)),
    (r"(.*/)?layers/(attn/o|mlp/down)/w/b", PartitionSpec(None, None, "fsdp")),
    *RULES,
    (r".*", PartitionSpec()),
)
ROWS = PartitionSpec(("data", "fsdp"))  # the leading axis of a batch
# Rules for leaves of one layer as they are multiplied: whole over `fsdp`, whose devices have other
# rows each. What is gathered is what is stored, so that codes travel and not dequantised weights.
GATHERED: tree.Rules = (
    (r"(.*/)?layers/(attn/[qkv]|mlp/(gate|up))/w", PartitionSpec(None, "tensor")),
    (r"(.*/)?layers/(attn/o|mlp/down)/w", PartitionSpec("tensor", None)),
    (r"(.*/)?layers/(attn/[qkv]|mlp/(gate|up))/w/a", PartitionSpec()),
    (r"(.*/)?layers/(attn/[qkv]|mlp/(gate|up))/w/b", PartitionSpec(None, "tensor")),
    (r"(.*/)?layers/(attn/o|mlp/down)/w/a", PartitionSpec("tensor", None)),
    (r"(.*/)?layers/(attn/o|mlp/down)/w/b", PartitionSpec()),
)
# Rules for what logits are computed from: every device has some of the vocabulary, so that only
# maxima and sums of the logits travel, and not the logits.
HEAD: tree.Rules = (
    (r"(.*/)?embed/w", PartitionSpec(WEIGHTS, None)),
    (r"(.*/)?head/w", PartitionSpec(None, WEIGHTS)),
)


# Compute capability of each kind of GPU that a mesh was made of. While a step is traced, its mesh
# tells the kind of its devices alone, which need not be at hand.
CAPABILITY: dict[str, str | None] = {}


def make_mesh(axes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """Returns a mesh with named axes in the given order, over all devices by default.

    One size may be -1: that axis takes all devices that the other axes leave. Raises ValueError if
    the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = list(axes.values())
    described = ", ".join(f"{name}={size}" for name, size in axes.items())
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"mesh {described}: expected positive sizes, and -1 at most once")
    named = math.prod(size for size in sizes if size != -1)
    if -1 in sizes:
        sizes[sizes.index(-1)] = len(devices) // named
    if math.prod(sizes) != len(devices):
        count = len(devices)
        fits = ", ".join(map(str, divisors(count)))
        raise UserError(
            f"mesh {described}: expected sizes whose product is the device count, {count}: each a "
            f"divisor of it ({fits}), or -1 for one of them, which takes what the others leave"
        )
    for device in devices:
        if kind := getattr(device, "device_kind", None):
            CAPABILITY[kind] = getattr(device, "compute_capability", None)
    return Mesh(np.asarray(devices).reshape(sizes), tuple(axes))


def check_mesh(mesh: Any, rules: tree.Rules | None = None) -> None:
    """Raises ValueError for a mesh that cannot be used.

    That is anything but a `jax.sharding.Mesh`, a mesh with an axis that is neither in `AXES` nor
    named by a rule and so would shard nothing, or one with axes of type `AxisType.Explicit`, over
    which XLA may not choose shardings.
    """
    made = "make one with jaxtune.make_mesh({'fsdp': -1})"
    if not isinstance(mesh, Mesh):
        raise UserError(f"mesh is a {type(mesh).__name__}; expected a jax.sharding.Mesh: {made}")
    named = {name for _, spec in rules or () for entry in spec for name in _names(entry)}
    idle = [name for name in mesh.axis_names if name not in named | set(AXES)]
    if idle:
        raise UserError(
            f"mesh axis {idle[0]!r} shards nothing: expected {', '.join(AXES)}, or an axis that "
            "the rules name"
        )
    if AxisType.Explicit in mesh.axis_types:
        raise UserError(f"the mesh has explicit axes; expected AxisType.Auto: {made}")


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
    specs = tree.select(state, STATE_RULES, unused="allow", is_leaf=quant.is_quantized)

    def place(leaf, spec):
        # An optimiser's array with fewer dimensions than its parameter's spec is replicated.
        spec = spec if len(spec) <= leaf.ndim else PartitionSpec()
        return _of_leaf(leaf if quant.is_quantized(leaf) else leaf.shape, spec, mesh)

    return jax.tree.map(place, state, specs, is_leaf=quant.is_quantized)


def mesh_of(x: Any) -> jax.sharding.AbstractMesh:
    """Returns the mesh in context while tracing, or else the mesh of the arrays' sharding."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.typeof(jax.tree.leaves(x)[0]).sharding.mesh if mesh.empty else mesh


def ways(x: Any, *axes: str) -> int:
    """Returns the number of parts that some axes make of the mesh that arrays are traced for.

    It is 1 without a mesh, and on one with axes that are not in `AXES` or that XLA may not use.
    """
    mesh = mesh_of(x)
    usable = all(of == AxisType.Auto for of in mesh.axis_types) and set(mesh.axis_names) <= {*AXES}
    return math.prod(mesh.shape.get(name, 1) for name in axes) if usable else 1


def by_rows(x: jax.Array) -> jax.Array:  # [B, ...]
    """Returns an array with each row of a batch whole on one device, if the mesh divides them."""
    return x if x.shape[0] % ways(x, *ROWS[0]) else resharded(x, ROWS, ROWS)


def gathered(path: str, leaves: Any) -> Any:
    """Returns the leaves of one layer under a path, a weight or an adapter, as `GATHERED` says.

    Other leaves are returned as they are, and so are all on a mesh of one device or without one.
    Gradients are sharded like stored leaves, so that each device receives its part of their sum.
    """
    return _followed(path, leaves, GATHERED, 1)


def as_head(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Returns leaves by path, with those that logits are computed from sharded by `HEAD`."""
    return {path: _followed(path, leaf, HEAD, 0) for path, leaf in leaves.items()}


def _followed(path: str, leaves: Any, rules: tree.Rules, layers: int) -> Any:
    """Reshards leaves as rules say; stored leaves have more axes than these, `layers` in front."""
    if ways(leaves, *AXES) == 1:
        return leaves
    under = partial(tree.select, {path: leaves}, unused="allow", is_leaf=quant.is_quantized)
    specs, stored = under((*rules, (r".*", None))), under(STATE_RULES)

    def reshard(leaf, spec, stored):
        back = PartitionSpec(*stored[layers:])
        return leaf if spec is None else resharded(leaf, spec, back)

    return jax.tree.map(reshard, {path: leaves}, specs, stored, is_leaf=quant.is_quantized)[path]


def resharded(leaf: Any, spec: PartitionSpec, back: PartitionSpec) -> Any:
    """Returns an array or quantised weight sharded by `spec`, and its gradient by `back`.

    These are constraints for XLA. The specs are those of the dequantised weight.
    """
    if ways(leaf, *AXES) == 1:
        return leaf
    shape = leaf if quant.is_quantized(leaf) else leaf.shape
    specs = (_of_leaf(shape, each, mesh_of(leaf)) for each in (spec, back))
    return jax.tree.map(_constrained, leaf, *specs)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _constrained(x: jax.Array, there: NamedSharding, here: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, there)


_constrained.defvjp(
    lambda x, there, here: (_constrained(x, there, here), None),
    lambda there, here, _, gradient: (jax.lax.with_sharding_constraint(gradient, here),),
)


def described(leaves: Any, where: Any = None) -> Any:
    """Returns a tree of `jax.ShapeDtypeStruct`s with the shapes, dtypes and shardings of leaves.

    `where` is a tree of shardings to take instead of the leaves' own, which those of the host, as
    NumPy arrays or shapes without a sharding, do not have.
    """
    where = jax.tree.map(_where, leaves) if where is None else where
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        leaves,
        where,
    )


def device_bytes(leaves: Any) -> int:
    """Returns the bytes of a tree of arrays, or of their described shapes, that a device holds.

    Leaves without a sharding are those of the host, of which it holds nothing.
    """
    placed = [leaf for leaf in jax.tree.leaves(leaves) if _where(leaf) is not None]
    shards = ((leaf.sharding.shard_shape(leaf.shape), leaf) for leaf in placed)
    return sum(math.prod(shape) * leaf.dtype.itemsize for shape, leaf in shards)


def host_bytes(leaves: Any) -> int:
    """Returns the bytes of those leaves of a tree, or of described shapes, that have no sharding.

    The host holds them, or where they are arguments of a program, every device holds all of them.
    """
    return total_bytes([leaf for leaf in jax.tree.leaves(leaves) if _where(leaf) is None])


def total_bytes(leaves: Any) -> int:
    """Returns the bytes of a tree of arrays, or of their described shapes, counted once each."""
    # Not `nbytes`, which an array of random keys does not have.
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(leaves))


@dataclass(frozen=True)
class Undivided:
    """A dimension that the rules would split over mesh axes that do not divide it."""

    axes: tuple[str, ...]  # of more than one device
    size: int


def undivided(
    shapes: Mapping[str, Any], mesh: Mesh, rules: tree.Rules = RULES
) -> dict[str, tuple[Undivided, ...]]:
    """Returns the dimensions that every device holds whole against the rules, by slash path.

    Leaves without such a dimension are left out. The arguments are those of `shardings`.
    """
    specs = tree.match(rules, shapes, unused="allow")
    found = {}
    for path, where in shardings(shapes, mesh, rules).items():
        shape = shapes[path].shape if quant.is_quantized(shapes[path]) else shapes[path]
        dimensions = zip(shape, specs[path], split_axes(where, len(shape)), strict=False)
        whole = [
            Undivided(tuple(name for name in _names(entry) if mesh.shape.get(name, 1) > 1), size)
            for size, entry, split in dimensions
            if split is None
        ]
        found[path] = tuple(each for each in whole if each.axes)
    return {path: dimensions for path, dimensions in found.items() if dimensions}


def split_axes(where: Any, dimensions: int) -> tuple[str | tuple[str, ...] | None, ...]:
    """Returns the mesh axes that split each dimension of a leaf; if quantised, of its weight."""
    if not quant.is_quantized(where):
        return (*where.spec, *[None] * (dimensions - len(where.spec)))
    # Codes are [..., blocks, block, out]: a split of either `blocks` or `block` splits the inputs.
    *layers, blocks, block, outputs = where.codes.spec
    return (*layers, blocks or block, outputs)


def mesh_under(leaves: Any) -> Mesh | None:
    """Returns the mesh that the first leaf of a tree on devices is sharded over, or None."""
    found = filter(None, map(_where, jax.tree.leaves(leaves)))
    where = next(found, None)
    return where.mesh if isinstance(where, NamedSharding) else None


def _where(leaf: Any) -> Sharding | None:
    return getattr(leaf, "sharding", None)


def put(given: Any, where: Any) -> Any:
    """Places host arrays on devices; every process passes the same whole arrays.

    Args:
      given: A tree of arrays.
      where: A sharding for all of them, or a tree of shardings.

    Returns:
      The tree with global arrays.
    """
    where = jax.tree.map(lambda leaf: where, given) if isinstance(where, Sharding) else where

    def one(leaf: Any, where: Sharding) -> jax.Array:
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, where, lambda index: leaf[index])

    return jax.tree.map(one, given, where)


def to_host(array: jax.Array | np.ndarray) -> np.ndarray:
    """Returns a whole array on this host, gathered from all processes if it is sharded over them.

    All processes must call this with the same arrays in the same order.
    """
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        if array.is_fully_replicated:
            return np.asarray(array.addressable_data(0))
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def divisors(number: int) -> list[int]:
    """Returns the divisors of a positive number in ascending order."""
    return [each for each in range(1, number + 1) if number % each == 0]


def fitted(spec: PartitionSpec, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Returns a spec without the axes that the mesh lacks or that do not divide their dimension.

    Several axes in one entry are dropped together if their product does not divide the dimension.
    """
    if len(spec) > len(shape):
        raise UserError(f"{spec} has more entries than the shape {shape} has dimensions")
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
