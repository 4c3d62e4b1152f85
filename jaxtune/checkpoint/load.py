"""Published checkpoints into a model and its variables, one leaf at a time."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from jaxtune import families, sharding, tree
from jaxtune.checkpoint import names
from jaxtune.checkpoint.files import CheckpointError, Safetensors
from jaxtune.checkpoint.hub import locate
from jaxtune.checkpoint.names import Piece, Shape
from jaxtune.models.decoder import Decoder, DecoderConfig

DTYPES = ("float32", "bfloat16", "float16")
Fetch = Callable[[str], np.ndarray]  # a foreign tensor by name


def load(
    source: str | os.PathLike,
    dtype: str = "float32",
    mesh: Mesh | None = None,
    *,
    rules: tree.Rules = sharding.RULES,
    attention: str = "auto",
) -> tuple[Decoder, dict]:
    """A Flax model and its variables, from a checkpoint directory or a Hub repo id.

    `dtype` is that of the weights, and "auto" keeps the stored one; activations are float32 with
    float32 weights and bfloat16 otherwise, where the hardware has it. With a `mesh`, every leaf
    goes straight to the devices that `rules` (patterns → PartitionSpec) name.
    """
    if dtype not in (*DTYPES, "auto"):
        raise ValueError(f"dtype {dtype!r}: expected one of {', '.join(DTYPES)} or auto")
    described = describe(locate(source))
    with described.stored as stored:
        described = untied_if_stored_apart(described)
        model = Decoder(
            described.config,
            compute_dtype(dtype),
            attention=attention,
            origin=str(described.directory.absolute()),
        )
        shapes, parts = described.shapes, described.parts
        where = placements(shapes, mesh, rules)
        params = {
            path: _place(stored, leaf, shapes[path], dtype, where[path])
            for path, leaf in names.by_leaf(parts).items()
        }
    return model, {"params": tree.unflatten(params)}


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


def describe(
    directory: Path, headers: Callable[[Path], Safetensors] = Safetensors.open
) -> Described:
    """Open a checkpoint's directory; `headers` finds its tensors, which need not lie there."""
    if directory.is_file():
        raise CheckpointError(
            f"{directory} is a file: a checkpoint is a directory, with config.json beside its "
            "*.safetensors"
        )
    raw, family, config = families.read(directory)
    refuse_quantised(raw, directory)
    return Described(directory, raw, family, config, headers(directory))


def refuse_quantised(raw: Mapping, directory: Path) -> None:
    """Stop at a checkpoint whose weights are packed: read as plain numbers they are noise."""
    if method := (raw.get("quantization_config") or {}).get("quant_method"):
        raise CheckpointError(
            f"{directory} is stored quantised ({method}); jaxtune reads the full-precision "
            "checkpoint it was made from"
        )


def compute_dtype(dtype: str):
    """The activations' dtype for weights of `dtype`."""
    if dtype == "float32" or (dtype != "bfloat16" and jax.default_backend() == "cpu"):
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
    alike = np.array_equal(_bits(stored.read(head)), _bits(stored.read(embedding)))
    stored.release(head)
    stored.release(embedding)
    config = replace(described.config, tied=alike)
    return replace(described, config=config)


def stored_as(table: names.Table, path: str) -> str:
    """The foreign name of the tensor that holds a leaf, or one layer of it."""
    return next(name.theirs for name in table if path in name.ours)


def placements(
    shapes: Mapping[str, Shape], mesh: Mesh | None, rules: tree.Rules
) -> dict[str, Sharding]:
    """A sharding for every leaf; without a mesh, JAX's default device."""
    if mesh is not None:
        return sharding.shardings(shapes, mesh, rules)
    return dict.fromkeys(shapes, jnp.zeros(()).sharding)


def oriented(fetch: Fetch, piece: Piece) -> np.ndarray:
    """One layer of a leaf, or a leaf without layers, as a view of the foreign tensor."""
    rows = fetch(piece.theirs)[piece.rows]
    return rows.T if piece.transposed else rows


def _place(
    stored: Safetensors, parts: Sequence[Piece], shape: Shape, dtype: str, where: Sharding
) -> jax.Array:
    """Put one leaf on its devices, layer by layer: the host never holds more than a layer."""
    held = stored.tensors[parts[0].theirs].dtype if dtype == "auto" else jnp.dtype(dtype)
    if parts[0].layer is None:
        return _put(stored, parts[0], shape, held, where)
    leaf = jnp.zeros(shape, held, device=where)
    for piece in parts:
        layer = _put(stored, piece, shape[1:], held, _of_layer(where))
        leaf = _set_layer(leaf, layer, piece.layer)
    return leaf


def _put(
    stored: Safetensors, piece: Piece, shape: Shape, dtype: np.dtype, where: Sharding
) -> jax.Array:
    """What this process's devices hold of one piece, read from the file and put there."""
    view = oriented(stored.read, piece)
    # Without a copy of its own, an array on the CPU would be the file's pages themselves.
    shards = [
        jax.device_put(cast(view[index], dtype, piece.theirs), device, may_alias=False)
        for device, index in where.addressable_devices_indices_map(shape).items()
    ]
    array = jax.make_array_from_single_device_arrays(shape, where, shards)
    jax.block_until_ready(array)
    stored.release(piece.theirs)
    return array


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
