"""Published checkpoints into a model and its variables, one leaf at a time."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial, reduce
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from jaxtune import families, sharding, tree
from jaxtune.checkpoint import names
from jaxtune.checkpoint.files import CheckpointError, Safetensors
from jaxtune.checkpoint.hub import locate
from jaxtune.checkpoint.names import Piece, Shape
from jaxtune.models.attention import IMPLEMENTATIONS
from jaxtune.models.decoder import Decoder, DecoderConfig

DTYPES = ("float32", "bfloat16", "float16")
BLOCK_BYTES = 2**26  # of a tensor converted or compared at a time
Fetch = Callable[[str], np.ndarray]  # a foreign tensor by name


def load(
    source: str | os.PathLike,
    dtype: str = "float32",
    *,
    mesh: Mesh | None = None,
    rules: tree.Rules | None = None,
    attention: str = "auto",
) -> tuple[Decoder, dict]:
    """A Flax model and its variables, from a checkpoint directory or a Hub repo id.

    `dtype` is that of the weights, and "auto" keeps the stored ones; activations are float32 where
    any weight is, and otherwise bfloat16 where the hardware has it. With a `mesh`, every leaf goes
    straight to the devices that `rules` (pattern → PartitionSpec) name, or `sharding.RULES`.
    """
    dtype = known_dtype(dtype)
    if attention not in IMPLEMENTATIONS:
        raise ValueError(f"attention {attention!r}: expected one of {', '.join(IMPLEMENTATIONS)}")
    described = describe(locate(source))
    with described.stored as stored:
        described = untied_if_stored_apart(described)
        kept = described.dtypes(dtype)
        where = placements(described.shapes, mesh, rules)
        model = Decoder(
            described.config,
            activation_dtype(kept.values()),
            attention=attention,
            origin=str(described.directory.absolute()),
        )
        params = {
            path: _place(stored, leaf, described.shapes[path], kept[path], where[path])
            for path, leaf in names.by_leaf(described.parts).items()
        }
    return model, {"params": tree.unflatten(params)}


def known_dtype(dtype: Any) -> str:
    """The name of a dtype that weights can be held in, or "auto"."""
    name = dtype if isinstance(dtype, str) else getattr(dtype, "__name__", str(dtype))
    if name not in (*DTYPES, "auto"):
        raise ValueError(f"dtype {name!r}: expected one of {', '.join(DTYPES)} or auto")
    return name


@dataclass(frozen=True)
class Described:
    """A checkpoint as its config.json and headers tell it, before any weight is read."""

    directory: Path
    raw: families.Config
    family: families.Family
    config: DecoderConfig
    stored: Safetensors

    @cached_property
    def table(self) -> names.Table:
        """The family's names, as the release that wrote these files spells them."""
        return names.choose(self.family.tables, self.stored.tensors)

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """The shape of every leaf, by slash path."""
        return leaf_shapes(Decoder(self.config))

    @cached_property
    def parts(self) -> tuple[Piece, ...]:
        """Where every leaf lies in the files; every tensor that does not fit is listed at once."""
        return match_names(self.table, self.shapes, self.stored, self.family.other, self.directory)

    def dtypes(self, dtype: str) -> dict[str, np.dtype]:
        """What each leaf will be held in; "auto" takes the widest that its layers are stored in."""
        if dtype != "auto":
            return dict.fromkeys(self.shapes, jnp.dtype(dtype))
        return {
            path: reduce(jnp.promote_types, (self.stored.tensors[p.theirs].dtype for p in parts))
            for path, parts in names.by_leaf(self.parts).items()
        }


def describe(
    directory: Path, headers: Callable[[Path], Safetensors] = Safetensors.open
) -> Described:
    """Open a checkpoint's directory; `headers` finds its tensors, which need not lie there."""
    if not directory.is_dir():
        raise CheckpointError(
            f"{directory} is a file: a checkpoint is a directory, with config.json beside its "
            "*.safetensors"
        )
    raw, family, config = families.read(directory)
    refuse_quantised(raw, directory)
    return Described(directory, raw, family, config, headers(directory))


def refuse_quantised(raw: Mapping, directory: Path) -> None:
    """Stop at a checkpoint whose weights are packed: read as plain numbers they are noise."""
    stored = raw.get("quantization_config")
    if stored:
        method = stored.get("quant_method") if isinstance(stored, Mapping) else stored
        raise CheckpointError(
            f"{directory} is stored quantised ({method}, as quantization_config in its config.json "
            "says); jaxtune reads the full-precision checkpoint it was made from"
        )


def activation_dtype(held: Iterable[np.dtype]):
    """The activations' dtype for weights held in these."""
    names = {str(dtype) for dtype in held}
    if "float32" in names or ("bfloat16" not in names and jax.default_backend() == "cpu"):
        return jnp.float32
    # Never float16: Gemma's activations overflow it.
    return jnp.bfloat16


def leaf_shapes(model: Decoder) -> dict[str, Shape]:
    """The shape of every leaf of a model's parameters, by slash path, without making any."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    abstract = jax.eval_shape(model.init, jax.eval_shape(jax.random.key, 0), tokens)
    return {path: leaf.shape for path, leaf in tree.flatten(abstract["params"]).items()}


def match_names(
    table: names.Table,
    shapes: Mapping[str, Shape],
    stored: Safetensors,
    other: Sequence[str],
    directory: Path,
) -> tuple[Piece, ...]:
    """Where every leaf lies in the files; every tensor that does not fit is listed at once."""
    parts = names.pieces(table, shapes)
    found = {name: info.shape for name, info in stored.tensors.items()}
    # A tied model has its head in the embedding; some files hold it a second time.
    known = other if "head/w" in shapes else [*other, re.escape(stored_as(table, "head/w"))]
    try:
        names.check(parts, found, known)
    except names.NamesError as problem:
        raise CheckpointError(f"{directory}: {problem}") from None
    packed = [each.theirs for each in parts if not _floating(stored.tensors[each.theirs].dtype)]
    if packed:
        raise CheckpointError(
            f"{directory}: {packed[0]} and {len(packed) - 1} more are stored as "
            f"{stored.tensors[packed[0]].dtype}, not as floating-point numbers"
        )
    return parts


def untied_if_stored_apart(described: Described) -> Described:
    """Believe the tensors where a config says tied and the head stored beside it differs."""
    stored = described.stored
    head, embedding = (stored_as(described.table, path) for path in ("head/w", "embed/w"))
    if not described.config.tied or not {head, embedding} <= stored.tensors.keys():
        return described
    alike = _equal(stored, head, embedding)
    return replace(described, config=replace(described.config, tied=alike))


def _equal(stored: Safetensors, one: str, other: str) -> bool:
    """Whether two tensors hold the same bytes; a block at a time, up to the first difference."""
    first, second = stored.read(one), stored.read(other)
    if (first.shape, first.dtype) != (second.shape, second.dtype):
        return False
    blocks = _blocks(first)
    alike = all(np.array_equal(_bits(first[rows]), _bits(second[rows])) for rows in blocks)
    stored.release(one)
    stored.release(other)
    return alike


def stored_as(table: names.Table, path: str) -> str:
    """The foreign name of the tensor that holds a leaf, or one layer of it."""
    return next(name.theirs for name in table if path in name.ours)


def placements(
    shapes: Mapping[str, Shape], mesh: Mesh | None, rules: tree.Rules | None
) -> dict[str, Sharding]:
    """A sharding for every leaf; without a mesh, JAX's default device."""
    if mesh is not None:
        sharding.check_mesh(mesh, rules)
        return sharding.shardings(shapes, mesh, rules or sharding.RULES)
    if rules is not None:
        raise ValueError("rules say how leaves lie on a mesh, and no mesh was given")
    return dict.fromkeys(shapes, jnp.zeros(()).sharding)


def oriented(fetch: Fetch, piece: Piece) -> np.ndarray:
    """One layer of a leaf, or a leaf without layers, as a view of the foreign tensor."""
    rows = fetch(piece.theirs)[piece.rows]
    return rows.T if piece.transposed else rows


def _place(
    stored: Safetensors,
    parts: Sequence[Piece],
    shape: Shape,
    dtype: np.dtype,
    where: Sharding,
) -> jax.Array:
    """Put one leaf on its devices, layer by layer: the host never holds more than one."""
    if parts[0].layer is None:
        return _put(stored, parts[0], shape, dtype, where)
    leaf = jnp.zeros(shape, dtype, device=where)
    for piece in parts:
        layer = _put(stored, piece, shape[1:], dtype, _of_layer(where))
        leaf = _set_layer(leaf, layer, piece.layer)
    return leaf


def _put(
    stored: Safetensors, piece: Piece, shape: Shape, dtype: np.dtype, where: Sharding
) -> jax.Array:
    """What this process's devices hold of one piece, read from the file and put there."""
    # Without a copy of its own, an array on the CPU would be the file's pages themselves.
    shards = [
        jax.device_put(_converted(stored, piece, index, dtype), device, may_alias=False)
        for device, index in where.addressable_devices_indices_map(shape).items()
    ]
    array = jax.make_array_from_single_device_arrays(shape, where, shards)
    jax.block_until_ready(array)
    stored.release(piece.theirs)
    return array


def _converted(
    stored: Safetensors, piece: Piece, index: tuple[slice, ...], dtype: np.dtype
) -> np.ndarray:
    """Part of a piece in the dtype it will be held in; the file's pages go as they are read."""
    view = oriented(stored.read, piece)[index]
    if view.dtype == dtype:
        return view
    source = view.T if piece.transposed else view  # rows as they lie in the file
    target = np.empty(source.shape, dtype)
    for rows in _blocks(source):
        target[rows] = cast(source[rows], dtype, piece.theirs)
        stored.release(piece.theirs)
    return target.T if piece.transposed else target


def _blocks(array: np.ndarray) -> Iterator[slice]:
    """Runs of rows that take about `BLOCK_BYTES` each."""
    rows = max(1, BLOCK_BYTES * len(array) // max(1, array.nbytes))
    return (slice(start, start + rows) for start in range(0, len(array), rows))


def cast(array: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """A tensor in another dtype; one whose values float16 cannot hold is an error."""
    if array.dtype == dtype or not _floating(array.dtype):
        return array
    with np.errstate(over="ignore"):
        converted = array.astype(dtype)
    if dtype == np.float16 and np.isinf(converted).any() and np.isfinite(array).all():
        largest = np.abs(array.astype(np.float32)).max()
        raise CheckpointError(
            f"{name} has values up to {largest:.4g}, beyond float16's range: "
            "take bfloat16 or float32"
        )
    return converted


@partial(jax.jit, donate_argnums=0)
def _set_layer(leaf: jax.Array, layer: jax.Array, number: int) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(leaf, layer, number, axis=0)


def _of_layer(where: Sharding) -> Sharding:
    """The sharding of one layer of a stacked leaf."""
    if isinstance(where, NamedSharding):
        return NamedSharding(where.mesh, PartitionSpec(*where.spec[1:]))
    return where


def _floating(dtype: np.dtype) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)


def _bits(array: np.ndarray) -> np.ndarray:
    """The same bytes as unsigned integers, which numpy copies and compares faster than bfloat16."""
    return array.view(f"u{array.dtype.itemsize}")
