"""Loads published checkpoints into a Flax model and its variables, one leaf at a time."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, reduce
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jaxtune import families, sharding, tree
from jaxtune.adapters import lora
from jaxtune.checkpoint import placing
from jaxtune.checkpoint.activations import computed
from jaxtune.checkpoint.dtypes import AUTO, dtype_name
from jaxtune.checkpoint.formats import bnb
from jaxtune.checkpoint.formats.npz import Npz
from jaxtune.checkpoint.formats.safetensors import Safetensors
from jaxtune.checkpoint.formats.tensors import CheckpointError, Tensors, some
from jaxtune.checkpoint.origin import Origin
from jaxtune.checkpoint.sources import locate
from jaxtune.display.errors import UserError
from jaxtune.display.escapes import shown
from jaxtune.families import bigvision, names
from jaxtune.families.names import Piece, Shape
from jaxtune.models.attention import FORWARD, IMPLEMENTATIONS, Implementation
from jaxtune.models.paligemma import Model
from jaxtune.quant import abstract, is_quantized, kinds


def load(
    source: str | os.PathLike,
    dtype: DTypeLike = AUTO,
    quant: str | tree.Rules | None = None,
    *,
    mesh: Mesh | None = None,
    rules: tree.Rules | None = None,
    attention: Implementation = "auto",
    compute: str = "auto",
    precision: str = "auto",
) -> tuple[Model, dict]:
    """Loads a published checkpoint into a Flax model and its variables.

    Args:
      source: checkpoint directory, Hub repository (`owner/name` or `owner/name@revision`), or an
        .npz file of big_vision.
      dtype: dtype of the weights that are not quantised: "float32", "bfloat16", "float16", or
        "auto" for that in which the checkpoint stores each leaf.
      quant: weights to quantise as they are read, all of them linear maps of the decoder's layers.
        Either one kind for all of these ("nf4", "nf4-double", "int4" or "int8"), or rules
        (pattern → kind or None). Must be None for checkpoints that are stored in 4 bits, which
        keep their quantisation.
      mesh: mesh to shard the weights over; each leaf goes straight to its devices. None puts
        everything on JAX's default device.
      rules: shardings of the leaves on `mesh` (pattern → PartitionSpec); None means
        `sharding.RULES`.
      attention: attention kernel, one of `attention.IMPLEMENTATIONS`; "forward" for a model to be
        differentiated in forward mode; or a function that is called as `attention.plain` is.
      compute: dtype of the activations, "float32" or "bfloat16". "float16" holds them in float32
        and multiplies them in scaled float16, which does not overflow. "auto" takes float32 if any
        weight that is not quantised is float32; otherwise bfloat16 on TPUs and on GPUs from Ampere
        on, float16 on older GPUs with tensor cores, and float32 elsewhere.
      precision: precision of products of float32, a key of `quant.precision.RULES`. "auto" takes
        "highest" if activations are float32, so that results are those of a CPU up to the order
        of sums, and JAX's "default" otherwise.

    Returns:
      The model, whose `origin` is the checkpoint, and its variables, `{"params": …}`.
    """
    described = describe(locate(source))
    with described.stored as stored:
        how = dict(attention=attention, compute=compute, precision=precision)
        described, model, held, where = _laid_out(
            described, dtype, quant, mesh=mesh, rules=rules, **how
        )
        params = {
            path: placing.load_leaf(stored, described.packed, pieces, held[path], where[path])
            for path, pieces in names.by_leaf(described.parts).items()
        }
    placing.trim()
    return model, {"params": tree.unflatten(params)}


def outline(described: "Described", *given: Any, **named: Any) -> tuple[Model, dict]:
    """Returns what `load` returns for a described checkpoint, with shapes in place of arrays.

    The other arguments are those of `load`. Each array is a `jax.ShapeDtypeStruct` with its
    sharding. The mesh may be of devices that are only described, such as those of a TPU slice that
    is not at hand.
    """
    with described.stored:
        _, model, held, where = _laid_out(described, *given, **named)
    return model, {"params": tree.unflatten(sharding.described(held, where))}


def _laid_out(
    described: "Described",
    dtype: DTypeLike = AUTO,
    quant: str | tree.Rules | None = None,
    *,
    mesh: Mesh | None = None,
    rules: tree.Rules | None = None,
    attention: Implementation = "auto",
    compute: str = "auto",
    precision: str = "auto",
) -> tuple["Described", Model, dict[str, Any], dict[str, Any]]:
    """Returns the description, its model, and the shape and sharding of every leaf by path."""
    dtype = dtype_name(dtype)
    if attention not in (*IMPLEMENTATIONS, FORWARD) and not callable(attention):
        known = ", ".join(IMPLEMENTATIONS)
        raise UserError(f"attention {attention!r}: expected one of {known}, or a function")
    described = untied_if_stored_apart(described)
    held = described.held(dtype, quant)
    where = placements(held, mesh, rules)
    plain = [leaf.dtype for leaf in held.values() if not is_quantized(leaf)]
    device = (jax.devices() if mesh is None else mesh.devices.flat)[0]
    activations, precision = computed(compute, precision, plain, device)
    model = described.model.clone(
        dtype=activations,
        attention=attention,
        precision=precision,
        origin=Origin(described.directory.absolute()),
    )
    return described, model, held, where


@dataclass(frozen=True)
class Described:
    """Checkpoint described by its config.json and tensor headers, before any weight is read."""

    directory: Path  # or an .npz file
    raw: families.ConfigJson
    family: families.Family
    model: Model
    stored: Tensors

    @cached_property
    def table(self) -> names.Table:
        """Name table of the family, in the version that matches these files."""
        return table_of(self.family, self.model, self.stored)

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """Shape of every leaf, by slash path."""
        return leaf_shapes(self.model)

    @cached_property
    def parts(self) -> tuple[Piece, ...]:
        """Pieces of the files' tensors that make up each leaf; raises if they do not fit."""
        return match_names(self.table, self.shapes, self.stored, self.family.other, self.directory)

    @cached_property
    def packed(self) -> dict[str, bnb.Packed]:
        """Tensors that are stored in 4 bits, by their names in the checkpoint."""
        return bnb.packed(self.stored)

    def held(self, dtype: str, quant: str | tree.Rules | None = None) -> dict[str, Any]:
        """Returns the shape and dtype that each leaf will have in memory, by slash path.

        A quantised leaf gets a `Quantized` with the shapes and dtypes of its arrays. With dtype
        "auto", a leaf gets the dtype to which the stored dtypes of its layers promote.
        """
        chosen = _kinds(self, quant)
        leaves = names.by_leaf(self.parts)
        return {
            path: abstract(shape, chosen[path])
            if path in chosen
            else jax.ShapeDtypeStruct(shape, self._dtype(leaves[path], dtype))
            for path, shape in self.shapes.items()
        }

    def written(
        self, dtype: DTypeLike, model: Model, leaves: Mapping[str, Any]
    ) -> dict[str, np.dtype]:
        """Returns the dtype in which each leaf of a model of this checkpoint is written, by path.

        The model may be untied where the description is not. With dtype "auto", a leaf that is
        stored in 4 bits gets the dtype of the embedding, and if the checkpoint has no weights, each
        leaf keeps its own.
        """
        name = dtype_name(dtype)
        if name != AUTO:
            return dict.fromkeys(leaves, jnp.dtype(name))
        held = replace(self, model=model).held(AUTO) if self.stored.tensors else leaves
        plain = lora.embedding(held).dtype
        return {path: plain if is_quantized(held[path]) else held[path].dtype for path in leaves}

    def _dtype(self, pieces: Sequence[Piece], dtype: str) -> np.dtype:
        if dtype != AUTO:
            return jnp.dtype(dtype)
        stored = (self.stored.tensors[piece.theirs].dtype for piece in pieces)
        return reduce(jnp.promote_types, stored)


def describe(directory: Path, headers: Callable[[Path], Tensors] = Safetensors.open) -> Described:
    """Describes a checkpoint from its config.json and tensor headers.

    `directory` may be an .npz file. `headers` opens the tensors of a directory; those of a Hub
    repository need not be on this machine (see `sources.locate_headers`).
    """
    if not directory.is_dir() and directory.suffix != ".npz":
        raise CheckpointError(
            f"{directory} is a file: expected a directory with config.json and *.safetensors, or "
            "an .npz file of big_vision"
        )
    raw, family, model = read_config(directory)
    refuse_quantised(raw, directory)
    stored = Npz.open(directory) if directory.suffix == ".npz" else headers(directory)
    return Described(directory, raw, family, model, stored)


def read_config(origin: Path) -> tuple[families.ConfigJson, families.Family, Model]:
    """Returns a checkpoint's config, its family and the model it describes.

    The config is that of its config.json; for an .npz file it is derived from the shapes in it.
    """
    if origin.suffix != ".npz":
        return families.read_config(origin)
    with Npz.open(origin) as stored:
        shapes = {name: info.shape for name, info in stored.tensors.items()}
    try:
        raw = bigvision.config(shapes)
        family = families.find(raw)
        return raw, family, family.model(raw)
    except families.FamilyError as problem:
        raise CheckpointError(f"{origin}: {problem}") from None


def table_of(family: families.Family, model: Model, stored: Tensors) -> names.Table:
    """Returns the table of tensor names, in the version that matches most of the stored names."""
    tables = bigvision.tables(model) if stored.format == Npz.format else family.tables
    return names.choose(tables, stored.tensors)


def refuse_quantised(raw: Mapping, directory: Path) -> None:
    """Raises if a checkpoint is stored quantised in any form but bitsandbytes' 4 bits."""
    stored = raw.get("quantization_config")
    if not stored or (isinstance(stored, Mapping) and stored.get("load_in_4bit")):
        return
    method = stored.get("quant_method") if isinstance(stored, Mapping) else stored
    raise CheckpointError(
        f"{directory} is stored quantised ({shown(method)}, according to quantization_config in "
        "its config.json), and jaxtune reads only the 4-bit formats of bitsandbytes: use the "
        "full-precision checkpoint that it was made from"
    )


def _kinds(described: Described, quant: str | tree.Rules | None) -> dict[str, str]:
    """Returns the kind of each quantised leaf by path: as it is stored, or else as `quant` says."""
    if not described.packed:
        return kinds(described.shapes, quant)
    if quant is not None:
        raise CheckpointError(
            f"{described.directory} is already stored in 4 bits: omit quant to keep its "
            "quantisation, or use the full-precision checkpoint that it was made from"
        )
    found = {}
    for path, pieces in names.by_leaf(described.parts).items():
        stored = {_stored_as(described, piece) for piece in pieces}
        if len(stored) > 1:
            raise CheckpointError(
                f"{described.directory}: some layers of {path} are stored in 4 bits and others are "
                "not, or in different 4-bit formats: use the full-precision checkpoint"
            )
        found[path] = stored.pop()
    return {path: kind for path, kind in found.items() if kind}


def _stored_as(described: Described, piece: Piece) -> str | None:
    """Returns the 4-bit kind in which a piece is stored, or None if it is not quantised."""
    if piece.theirs not in described.packed:
        return None
    whole = piece.rows == slice(0, piece.among)
    return bnb.held_as(described.stored, described.packed[piece.theirs], whole)


def leaf_shapes(model: Model) -> dict[str, Shape]:
    """Returns the shapes of a model's parameters by slash path, without allocating any."""
    return dict(_shapes(model.clone(origin=None)))


@lru_cache(maxsize=32)  # a command asks for those of its model several times
def _shapes(model: Model) -> tuple[tuple[str, Shape], ...]:
    inputs = [jax.ShapeDtypeStruct((1, 1), jnp.int32)]
    if model.pictures:
        side = model.pictures.side
        inputs.append(jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32))
    abstract = jax.eval_shape(model.init, jax.eval_shape(jax.random.key, 0), *inputs)
    return tuple((path, leaf.shape) for path, leaf in tree.flatten(abstract["params"]).items())


def match_names(
    table: names.Table,
    shapes: Mapping[str, Shape],
    stored: Tensors,
    other: Sequence[str],
    directory: Path,
) -> tuple[Piece, ...]:
    """Matches a checkpoint's tensors to the leaves of a model.

    Args:
      table: the names of the family's tensors.
      shapes: shapes of the model's leaves, by slash path.
      stored: the checkpoint's tensors.
      other: patterns of tensors that the checkpoint may have beside the model's.
      directory: the checkpoint's path, for error messages.

    Returns:
      The pieces of tensors that make up the leaves.

    Raises:
      CheckpointError: listing all tensors that are missing, unknown or of another shape, or
        naming one that is neither floating-point nor packed by bitsandbytes.
    """
    parts = names.pieces(table, shapes)
    packed = bnb.packed(stored)
    found = bnb.shapes(stored, packed)
    # A tied model uses its embedding as the output head; some files store it a second time.
    head = next((path for name in table for path in name.ours if path.endswith("head/w")), None)
    spare = [] if head is None or head in shapes else [re.escape(stored_as(table, head))]
    try:
        names.check(parts, found, [*other, *spare])
    except names.NamesError as problem:
        raise CheckpointError(f"{directory}: {problem}") from None
    plain = [each.theirs for each in parts if each.theirs not in packed]
    wrong = [name for name in plain if not placing.floating(stored.tensors[name].dtype)]
    if wrong:
        raise CheckpointError(
            f"{directory}: expected floating-point tensors, found "
            f"{stored.tensors[wrong[0]].dtype} in {some(wrong, 1)}"
        )
    return parts


def untied_if_stored_apart(described: Described) -> Described:
    """Returns the description, untied if the files store a head that differs from the embedding.

    Some configs say tied although the checkpoint has such a head: the tensors decide.
    """
    stored = described.stored
    model = described.model
    head, embedding = (
        stored_as(described.table, model.tower + path) for path in ("head/w", "embed/w")
    )
    if not model.config.tied or not {head, embedding} <= stored.tensors.keys():
        return described
    if not stored.tensors[head].file.is_file():  # only the headers of a repository were requested
        return described
    alike = _equal(stored, head, embedding)
    return replace(described, model=model.clone(config=replace(model.config, tied=alike)))


def _equal(stored: Tensors, one: str, other: str) -> bool:
    """Whether two tensors are bitwise equal; compares by blocks, up to the first difference."""
    first, second = stored.read(one), stored.read(other)
    if (first.shape, first.dtype) != (second.shape, second.dtype):
        return False
    blocks = placing.runs(first)
    alike = all(np.array_equal(_bits(first[rows]), _bits(second[rows])) for rows in blocks)
    stored.release(one)
    stored.release(other)
    return alike


def stored_as(table: names.Table, path: str) -> str | None:
    """Returns the name in `table` of the tensor that holds a leaf, or None if it has none."""
    return next((name.theirs for name in table if path in name.ours), None)


def placements(
    held: Mapping[str, Any], mesh: Mesh | None, rules: tree.Rules | None
) -> dict[str, Any]:
    """Returns a sharding for every array of every leaf, by slash path.

    Without a mesh, everything is placed on JAX's default device.
    """
    if mesh is not None:
        sharding.check_mesh(mesh, rules)
        shapes = {path: leaf if is_quantized(leaf) else leaf.shape for path, leaf in held.items()}
        return sharding.shardings(shapes, mesh, rules or sharding.RULES)
    if rules is not None:
        raise UserError("rules were given without a mesh: pass `mesh` as well")
    default = jnp.zeros(()).sharding
    return jax.tree.map(lambda _: default, dict(held))


def _bits(array: np.ndarray) -> np.ndarray:
    """Views an array as unsigned integers, which NumPy copies and compares faster than bfloat16."""
    return array.view(f"u{array.dtype.itemsize}")
