"""Writes a model and its variables as a checkpoint in the layout of its publisher."""

import dataclasses
import json
import os
import reprlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxtune import families
from jaxtune.adapters import lora
from jaxtune.adapters.lora import one_layer
from jaxtune.checkpoint import outgoing
from jaxtune.checkpoint.companions import TokenizerFiles, matching
from jaxtune.checkpoint.dtypes import AUTO, dtype_name
from jaxtune.checkpoint.formats import bnb, npz
from jaxtune.checkpoint.formats.npz import Npz
from jaxtune.checkpoint.formats.safetensors import (
    CheckpointError,
    Safetensors,
    new_directory,
    refuse_existing,
    write_sharded,
)
from jaxtune.checkpoint.formats.tensors import Tensors
from jaxtune.checkpoint.hub import COMPANIONS, GENERATION_CONFIG
from jaxtune.checkpoint.load import Described, leaf_shapes, read_config, table_of
from jaxtune.checkpoint.origin import NPZ, Origin
from jaxtune.checkpoint.placing import cast, floating, oriented
from jaxtune.checkpoint.processes import in_step
from jaxtune.display.errors import UserError
from jaxtune.families import bigvision, names
from jaxtune.families.names import Piece
from jaxtune.models.paligemma import Model
from jaxtune.quant import by_path, is_quantized
from jaxtune.sharding import to_host

INTO = ("original", "dequantised")
Leaves = Mapping[str, Any]  # arrays and quantised weights, by slash path
Plan = dict[str, tuple[names.Shape, np.dtype]]  # tensors to write, by their names on disk


def save_merged(
    model: Model,
    variables: Mapping,
    directory: str | os.PathLike,
    dtype: DTypeLike = AUTO,
    *,
    into: str | None = None,
    max_shard_bytes: int = 5_000_000_000,
    overwrite: bool = False,
    tokenizer: TokenizerFiles | None = None,
) -> Path | str:
    """Merges adapters into the weights and writes a checkpoint that transformers can load.

    The checkpoint gets its final name only once it is complete. With several processes, all of them
    must call this; the first one writes, and all succeed or fail together.

    Args:
      model: the model; config.json, tokenizer and any tensors that are not the model's own are
        taken from its `origin`.
      variables: all its variables as `jaxtune.load` returns them, with or without adapters.
      directory: directory to write in Hugging Face's layout, or for PaliGemma also a file name that
        ends in .npz, to write big_vision's layout. It may be a URL, such as s3://bucket/name.
      dtype: dtype of the weights that are written: "float32", "bfloat16", "float16", or "auto" for
        that in which the model's origin stores each of them.
      into: what to merge into where weights are quantised: "original" for the full-precision
        weights of the model's origin, or "dequantised" for the values of the codes. None means
        "original" if the origin has full-precision weights, else "dequantised".
      max_shard_bytes: most bytes of tensors per .safetensors file.
      overwrite: whether an earlier checkpoint under this name may be replaced.
      tokenizer: tokenizer to write into a directory, if not that of the model's origin.

    Returns:
      The path that was written, with `~` expanded, or the URL.
    """
    with outgoing.written(directory, overwrite) as target:
        _save(model, variables, target, dtype, into, max_shard_bytes, overwrite, tokenizer)
    return outgoing.at(directory)


def _save(
    model: Model,
    variables: Mapping,
    target: Path,
    dtype: DTypeLike,
    into: str | None,
    max_shard_bytes: int,
    overwrite: bool,
    tokenizer: TokenizerFiles | None,
) -> None:
    """Writes a checkpoint to a local path; see `save_merged`."""
    with in_step():
        dtype = dtype_name(dtype)
        base = described_origin(model)
        _check_config(model, base.model, base.directory)
        leaves = _fitting(variables, leaf_shapes(model))
        theirs = table_of(base.family, model, base.stored)
        dtypes = base.written(dtype, model, leaves)
        weights = _Weights.of(leaves, lora.adapters(variables), base.stored, theirs, into, dtypes)
        table = _table_to_write(target, theirs, base.family, model, base.stored)
        writer = _Writer(weights, table, base.family.other, None if dtype == AUTO else dtype)
        config = _described(base.raw, writer.dtype, base.model.config.tied, model.config.tied)
        if jax.process_index() == 0:
            refuse_existing(target, overwrite)
    with base.stored, in_step():
        try:
            if jax.process_index() == 0 and target.suffix == NPZ:
                npz.write(target, writer.plan, writer.blocks, overwrite)
            elif jax.process_index() == 0:
                with new_directory(target, overwrite=overwrite) as partial:
                    _write_companions(partial, base.directory, config, tokenizer)
                    write_sharded(partial, writer.plan, writer.tensor, max_shard_bytes)
        finally:
            writer.gather_rest()


def _table_to_write(
    target: Path, theirs: names.Table, family: families.Family, model: Model, stored: Tensors
) -> names.Table:
    """Returns the names for the tensors to write: those of the origin if it has the same format."""
    if (target.suffix == NPZ) == (stored.format == Npz.format):
        return theirs
    return bigvision.tables(model)[0] if target.suffix == NPZ else family.tables[0]


def _write_companions(
    directory: Path, origin: Path, config: Mapping, tokenizer: TokenizerFiles | None
) -> None:
    """Writes config.json and the tokenizer files; called before the weights, to fail early."""
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (directory / "config.json").write_text(text + "\n", encoding="utf-8")
    # A given tokenizer brings its files; what tells how to generate may still be the origin's.
    for file in matching(origin, [GENERATION_CONFIG] if tokenizer else COMPANIONS):
        shutil.copyfile(file, directory / file.name)
    if tokenizer:
        tokenizer.write(directory, whole=True)


@dataclasses.dataclass(frozen=True)
class _Weights:
    """Weights to write, with their adapters and what replaces quantised ones."""

    leaves: Leaves
    adapters: Mapping[str, lora.Lora]  # by the path of their weight
    stored: Tensors  # those of the model's origin
    origin: Mapping[tuple[str, int | None], Piece]  # in `stored`, by leaf and layer
    original: bool  # whether the origin's weights replace quantised ones
    dtypes: Mapping[str, np.dtype]  # to write, by the path of the leaf

    @classmethod
    def of(
        cls,
        leaves: Leaves,
        adapters: Mapping,
        stored: Tensors,
        table: names.Table,
        into: str | None,
        dtypes: Mapping[str, np.dtype],
    ) -> "_Weights":
        """Checks `into` (see `save_merged`), and chooses it if it is None.

        Args:
          leaves: the parameters by path.
          adapters: the adapters, by the path of their weight.
          stored: tensors of the model's origin; there may be none.
          table: names of the tensors in `stored`.
          into: "original", "dequantised" or None.
          dtypes: dtype in which to write each leaf, by path.

        Returns:
          The weights to write.
        """
        if into not in (None, *INTO):
            raise UserError(f"into {into!r}: expected one of {', '.join(INTO)}")
        full = bool(stored.tensors) and not bnb.packed(stored)
        if into == "original" and not full:
            raise CheckpointError(
                "the model's origin has no full-precision weights to merge into: use "
                "into='dequantised', or set an origin that has them with "
                "`model.clone(origin=jaxtune.Origin(directory))`"
            )
        parts = names.pieces(table, {path: leaf.shape for path, leaf in leaves.items()})
        origin = {(piece.path, piece.layer): piece for piece in parts}
        return cls(leaves, adapters, stored, origin, full and into != "dequantised", dtypes)

    def piece(self, piece: Piece) -> np.ndarray:
        """Returns a leaf, or one layer of it, with its adapter merged."""
        weight = one_layer(self.leaves[piece.path], piece.layer)
        if is_quantized(weight) and self.original:
            weight = oriented(self.stored.read, self.origin[piece.path, piece.layer])
        else:
            weight = jax.tree.map(to_host, weight)
        if piece.path not in self.adapters:
            whole = is_quantized(weight)
            return np.asarray(weight.astype(self.dtypes[piece.path]) if whole else weight)
        adapter = jax.tree.map(to_host, one_layer(self.adapters[piece.path], piece.layer))
        return np.asarray(lora.merged(weight, adapter, np.float32))


class _Writer:
    """Produces the tensors of a checkpoint one at a time.

    Their values come from the model's leaves, or for tensors that the model lacks from its origin.
    """

    def __init__(
        self,
        weights: _Weights,
        table: names.Table,
        other: Sequence[str],  # patterns of tensors to copy from the origin
        kind: str | None,  # dtype of copied tensors; None: the stored one
    ):
        held = weights.stored.tensors
        self.weights = weights
        self.dtype = str(lora.embedding(weights.dtypes))  # named by config.json
        parts = names.pieces(table, {path: leaf.shape for path, leaf in weights.leaves.items()})
        self.tensors = names.by_tensor(parts)
        plan: Plan = {
            name: (pieces[0].shape, weights.dtypes[pieces[0].path])
            for name, pieces in self.tensors.items()
        }
        for name in names.matching(other, held):
            info = held[name]
            changes = kind is not None and floating(info.dtype)
            plan[name] = (info.shape, jnp.dtype(kind) if changes else info.dtype)
        # Tensors are written, and gathered by every process, in this order: widest dtype first.
        self.plan = dict(sorted(plan.items(), key=lambda item: -item[1][1].itemsize))
        self._not_gathered = [name for name in self.plan if name in self.tensors]

    def tensor(self, name: str) -> np.ndarray:
        """Returns one tensor of the checkpoint, in its planned dtype."""
        if name in self.tensors:
            (whole,) = self.blocks(name)
            return whole
        return cast(self.weights.stored.read(name), self.plan[name][1], name)

    def blocks(self, name: str) -> Iterator[np.ndarray]:
        """Yields one tensor in its planned dtype, layer by layer if it holds all layers."""
        for whole in self._gathered(name):
            yield cast(whole, self.plan[name][1], name)

    def gather_rest(self) -> None:
        """Takes part in the gathers that are still to come.

        Processes that do not write, or whose writing failed, must do so: the others wait for them.
        """
        while self._not_gathered and jax.process_count() > 1:
            for _ in self._gathered(self._not_gathered[0]):
                pass

    def _gathered(self, name: str) -> Iterator[np.ndarray]:
        """Yields the parts of a tensor, gathered from all processes, before their conversion."""
        self._not_gathered.remove(name)
        pieces = self.tensors[name]
        for _, layer in groupby(pieces, key=lambda piece: piece.layer):
            rows = [piece.foreign(self.weights.piece(piece)) for piece in layer]
            yield np.concatenate(rows) if len(rows) > 1 else rows[0]


def _check_config(model: Model, described: Model, origin: Path) -> None:
    """Raises unless the origin's config.json, which will be copied, describes this model."""
    # `tied` may differ, as a stored head that differs unties the model: `_described` corrects it.
    pairs = {
        field.name: (getattr(model.config, field.name), getattr(described.config, field.name))
        for field in dataclasses.fields(model.config)
        if field.name != "tied"
    }
    pairs["pictures"] = (model.pictures, described.pictures)
    differing = [
        f"  {name}: the model has {reprlib.repr(ours)}, the origin {reprlib.repr(theirs)}"
        for name, (ours, theirs) in pairs.items()
        if ours != theirs
    ]
    if differing:
        raise CheckpointError(
            f"{origin / 'config.json'} does not describe the model that is being written:\n"
            + "\n".join(differing)
            + "\nSet its origin with `model.clone(origin=jaxtune.Origin(directory))`"
        )


def _fitting(variables: Mapping, wanted: Mapping[str, names.Shape]) -> Leaves:
    """Returns the parameters by path; raises one error listing all that do not fit the model."""
    if "params" not in variables:
        raise CheckpointError(
            f'the variables have no "params" (found {", ".join(map(str, variables)) or "nothing"}):'
            " pass all the variables that jaxtune.load returned"
        )
    leaves = by_path(variables["params"])
    if problems := [*_misfits(leaves, wanted), *_idle(variables, wanted)]:
        raise CheckpointError(names.listed("the variables do not fit the model:", problems))
    return leaves


def _misfits(leaves: Leaves, wanted: Mapping[str, names.Shape]) -> list[str]:
    common = [path for path in wanted if path in leaves]
    return [
        *(f"  missing  {path} {wanted[path]}" for path in wanted if path not in leaves),
        *(f"  unknown  {path} {np.shape(leaves[path])}" for path in leaves if path not in wanted),
        *(
            f"  shape    {path} is {np.shape(leaves[path])}, the model expects {wanted[path]}"
            for path in common
            if np.shape(leaves[path]) != wanted[path]
        ),
        *(
            f"  dtype    {path} is {leaves[path].dtype}, not floating-point"
            for path in common
            if not is_quantized(leaves[path]) and not floating(leaves[path].dtype)
        ),
    ]


def _idle(variables: Mapping, wanted: Mapping[str, names.Shape]) -> list[str]:
    """Describes the adapters that fit no weight of the model."""
    return [
        f"  adapter  {path}: a {adapter.a.shape} and b {adapter.b.shape}, but the model has "
        + (f"a weight of shape {wanted[path]}" if path in wanted else "no such weight")
        for path, adapter in lora.adapters(variables).items()
        if path not in wanted or not adapter.stands_on(wanted[path])
    ]


def described_origin(model: Model) -> Described:
    """Describes the checkpoint that a model was loaded from, whose weights may be missing."""
    origin = Origin.of(model).path
    raw, family, described = read_config(origin)
    return Described(origin, raw, family, described, stored_at(origin, raw))


def stored_at(origin: Path, raw: Mapping) -> Tensors:
    """Opens the weights of a model's origin.

    Returns no tensors if it has none: a model may have been made from a config.json alone.
    """
    if origin.suffix == NPZ:
        return Npz.open(origin)
    if any(origin.glob("*.safetensors")):
        return Safetensors.open(origin)
    if raw.get("vision_config") and families.find(raw).pictures is None:
        raise CheckpointError(
            f"{origin} has a vision_config but no *.safetensors, from which the vision tower is "
            "copied: restore the weight files, or set an origin that has them with "
            "`model.clone(origin=jaxtune.Origin(directory))`"
        )
    return Safetensors({}, {})


def _described(raw: Mapping, dtype: str, was_tied: bool, tied: bool) -> dict:
    """Returns the origin's config.json, adapted to the weights that are written."""
    config = _with_dtype(raw, dtype)
    config.pop("quantization_config", None)  # the written weights are not quantised
    if not {"dtype", "torch_dtype"} & config.keys():
        config["torch_dtype"] = dtype
    return config if was_tied == tied else config | {"tie_word_embeddings": tied}


def _with_dtype(config: Mapping, dtype: str) -> dict:
    def changed(key, value):
        if isinstance(value, Mapping):
            return _with_dtype(value, dtype)
        return dtype if key in ("dtype", "torch_dtype") and value else value

    return {key: changed(key, value) for key, value in config.items()}
