"""A model and its variables back into the layout that its makers publish."""

import contextlib
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
from jaxtune.checkpoint.hub import COMPANIONS
from jaxtune.checkpoint.load import DTYPES, leaf_shapes, read_config, table_of
from jaxtune.checkpoint.origin import NPZ, Origin
from jaxtune.checkpoint.placing import cast, floating, oriented
from jaxtune.checkpoint.processes import gathered, in_step
from jaxtune.families import bigvision, names
from jaxtune.families.names import Piece
from jaxtune.models.paligemma import Model
from jaxtune.quant import by_path, is_quantized

INTO = ("original", "dequantised")
Leaves = Mapping[str, Any]  # arrays and quantised weights, by slash path
Plan = dict[str, tuple[names.Shape, np.dtype]]  # tensors to write, by foreign name
MOST_LISTED = 30  # lines of one error message


def save_merged(
    model: Model,
    variables: Mapping,
    directory: str | os.PathLike,
    dtype: DTypeLike | None = "float16",
    *,
    into: str | None = None,
    max_shard_bytes: int = 5_000_000_000,
    overwrite: bool = False,
) -> Path:
    """Write a checkpoint in Hugging Face's layout, as transformers loads it, adapters merged.

    A name that ends in .npz gets PaliGemma in big_vision's layout instead.

    `dtype=None` keeps each leaf's own. `into` says what stands in for quantised weights: those that
    they were made from ("original", the default where the model's origin has them), or what the
    codes stand for ("dequantised"). Nothing stands under the final name until all of it does.
    With many processes, all of them call this, the first one writes, and all succeed or fail.
    """
    target = Path(directory).expanduser()
    with in_step():
        kind = written_dtype(dtype)
        origin = Origin.of(model).path
        raw, family, described = read_config(origin)
        _check_config(model, described, origin)
        leaves = _fitting(variables, leaf_shapes(model))
        stored = stored_at(origin, raw)
        theirs = table_of(family, model, stored)
        weights = _Weights.of(leaves, lora.adapters(variables), stored, theirs, into)
        table = _table_to_write(target, theirs, family, model, stored)
        writer = _Writer(weights, table, family.other, kind)
        config = _described(raw, writer.dtype, described.config.tied, model.config.tied)
        if jax.process_index() == 0:
            refuse_existing(target, overwrite)
    with stored, in_step():
        try:
            if jax.process_index() == 0 and target.suffix == NPZ:
                npz.write(target, writer.plan, writer.blocks, overwrite)
            elif jax.process_index() == 0:
                with new_directory(target, overwrite=overwrite) as partial:
                    _write_companions(partial, origin, config)
                    write_sharded(partial, writer.plan, writer.tensor, max_shard_bytes)
        finally:
            writer.gather_rest()
    return target


def _table_to_write(
    target: Path, theirs: names.Table, family: families.Family, model: Model, stored: Tensors
) -> names.Table:
    """The names in what is to be written: as the origin's, where that has the same format."""
    if (target.suffix == NPZ) == (stored.format == Npz.format):
        return theirs
    return bigvision.tables(model)[0] if target.suffix == NPZ else family.tables[0]


def _write_companions(directory: Path, origin: Path, config: Mapping) -> None:
    """All that is not weights; it comes first, because what fails there should fail early."""
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (directory / "config.json").write_text(text + "\n", encoding="utf-8")
    for pattern in COMPANIONS:
        for file in filter(Path.is_file, origin.glob(pattern)):
            shutil.copyfile(file, directory / file.name)


@dataclasses.dataclass(frozen=True)
class _Weights:
    """The weights to write, whatever they are held as."""

    leaves: Leaves
    adapters: Mapping[str, lora.Lora]  # by the path of the weight they stand beside
    stored: Tensors  # the origin's
    origin: Mapping[tuple[str, int | None], Piece]  # where each leaf's layers are in that
    original: bool  # whether those stand in for quantised ones

    @classmethod
    def of(
        cls,
        leaves: Leaves,
        adapters: Mapping,
        stored: Tensors,
        table: names.Table,
        into: str | None,
    ) -> "_Weights":
        """With what stands in for quantised weights checked, and chosen if nobody did."""
        if into not in (None, *INTO):
            raise ValueError(f"into {into!r}: expected one of {', '.join(INTO)}")
        full = bool(stored.tensors) and not bnb.packed(stored)
        if into == "original" and not full:
            raise CheckpointError(
                "the model's origin has no full-precision weights to merge into: take "
                "into='dequantised', or give a directory that has them with "
                "`model.clone(origin=jaxtune.Origin(directory))`"
            )
        parts = names.pieces(table, {path: leaf.shape for path, leaf in leaves.items()})
        origin = {(piece.path, piece.layer): piece for piece in parts}
        return cls(leaves, adapters, stored, origin, full and into != "dequantised")

    def dtype(self, piece: Piece) -> np.dtype:
        """The one a piece is held in, or that of what stands in for it."""
        leaf = self.leaves[piece.path]
        if not is_quantized(leaf):
            return leaf.dtype
        if not self.original:
            return self.plain
        return self.stored.tensors[self.origin[piece.path, piece.layer].theirs].dtype

    @property
    def plain(self) -> np.dtype:
        """The dtype of what is not quantised."""
        return lora.embedding(self.leaves).dtype

    def piece(self, piece: Piece) -> np.ndarray:
        """One layer of a leaf, or a leaf without layers, with its adapter merged."""
        weight = one_layer(self.leaves[piece.path], piece.layer)
        if is_quantized(weight) and self.original:
            weight = oriented(self.stored.read, self.origin[piece.path, piece.layer])
        else:
            weight = jax.tree.map(gathered, weight)
        if piece.path not in self.adapters:
            return np.asarray(weight.astype(self.dtype(piece)))
        adapter = jax.tree.map(gathered, one_layer(self.adapters[piece.path], piece.layer))
        return np.asarray(lora.merged(weight, adapter, np.float32))


class _Writer:
    """Makes each foreign tensor when its turn comes, from our leaves or from the origin's file."""

    def __init__(
        self,
        weights: _Weights,
        table: names.Table,
        other: Sequence[str],  # patterns of the origin's tensors that are carried along
        kind: np.dtype | None,
    ):
        held = weights.stored.tensors
        self.weights = weights
        self.dtype = str(kind or weights.plain)
        parts = names.pieces(table, {path: leaf.shape for path, leaf in weights.leaves.items()})
        self.tensors = names.by_tensor(parts)
        plan: Plan = {
            name: (pieces[0].shape, kind or weights.dtype(pieces[0]))
            for name, pieces in self.tensors.items()
        }
        for name in names.matching(other, held):
            info = held[name]
            plan[name] = (info.shape, kind if kind and floating(info.dtype) else info.dtype)
        # The order in which every process must gather, and the one in which files hold tensors.
        self.plan = dict(sorted(plan.items(), key=lambda item: -item[1][1].itemsize))
        self._not_gathered = [name for name in self.plan if name in self.tensors]

    def tensor(self, name: str) -> np.ndarray:
        """One foreign tensor in the dtype announced for it."""
        if name in self.tensors:
            (whole,) = self.blocks(name)
            return whole
        return cast(self.weights.stored.read(name), self.plan[name][1], name)

    def blocks(self, name: str) -> Iterator[np.ndarray]:
        """The same in parts, layer by layer where it holds all of them."""
        for whole in self._gathered(name):
            yield cast(whole, self.plan[name][1], name)

    def gather_rest(self) -> None:
        """Take part in the gathers still to come, in which other processes wait for this one."""
        while self._not_gathered and jax.process_count() > 1:
            for _ in self._gathered(self._not_gathered[0]):
                pass

    def _gathered(self, name: str) -> Iterator[np.ndarray]:
        """A tensor's parts in the dtypes they are held in."""
        self._not_gathered.remove(name)
        pieces = self.tensors[name]
        for _, layer in groupby(pieces, key=lambda piece: piece.layer):
            rows = [piece.foreign(self.weights.piece(piece)) for piece in layer]
            yield np.concatenate(rows) if len(rows) > 1 else rows[0]


def written_dtype(dtype: DTypeLike | None) -> np.dtype | None:
    """The dtype to write, if the caller named one; any other than load's would ruin weights."""
    if dtype is None:
        return None
    with contextlib.suppress(TypeError, ValueError):  # what NumPy knows no dtype for
        if (name := jnp.dtype(dtype).name) in DTYPES:
            return jnp.dtype(name)
    raise CheckpointError(
        f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}, or None to keep each leaf's own"
    )


def _check_config(model: Model, described: Model, origin: Path) -> None:
    """The origin's config.json goes along, so it must tell of this model."""
    # A head stored apart unties the model, whatever config.json says: `_described` puts it right.
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
            f"{origin / 'config.json'} describes another model than the one to be written:\n"
            + "\n".join(differing)
            + "\nGive where it came from with `model.clone(origin=jaxtune.Origin(directory))`"
        )


def _fitting(variables: Mapping, wanted: Mapping[str, names.Shape]) -> Leaves:
    """The parameters by path; all that do not fit the model are listed at once."""
    if "params" not in variables:
        raise CheckpointError(
            f'the variables hold {", ".join(map(str, variables)) or "nothing"}, and no "params": '
            "give all that jaxtune.load returned, not a part of it"
        )
    leaves = by_path(variables["params"])
    if problems := [*_misfits(leaves, wanted), *_idle(variables, wanted)]:
        more = len(problems) - MOST_LISTED
        listed = [*problems[:MOST_LISTED], *([f"  … and {more} more like these"] * (more > 0))]
        raise CheckpointError("\n".join(["the variables do not fit the model:", *listed]))
    return leaves


def _misfits(leaves: Leaves, wanted: Mapping[str, names.Shape]) -> list[str]:
    common = [path for path in wanted if path in leaves]
    return [
        *(f"  missing  {path} {wanted[path]}" for path in wanted if path not in leaves),
        *(f"  unknown  {path} {np.shape(leaves[path])}" for path in leaves if path not in wanted),
        *(
            f"  shape    {path} is {np.shape(leaves[path])}, the model's is {wanted[path]}"
            for path in common
            if np.shape(leaves[path]) != wanted[path]
        ),
        *(
            f"  dtype    {path} is {leaves[path].dtype}, not a floating-point one"
            for path in common
            if not is_quantized(leaves[path]) and not floating(leaves[path].dtype)
        ),
    ]


def _idle(variables: Mapping, wanted: Mapping[str, names.Shape]) -> list[str]:
    """Adapters that no weight of the model has room for."""
    return [
        f"  adapter  {path}: a {adapter.a.shape} and b {adapter.b.shape}, the model has "
        + (f"a weight {wanted[path]}" if path in wanted else "no such weight")
        for path, adapter in lora.adapters(variables).items()
        if path not in wanted or not adapter.stands_on(wanted[path])
    ]


def stored_at(origin: Path, raw: Mapping) -> Tensors:
    """The origin's weights, if it has any: a model may have been made from a bare config.json."""
    if origin.suffix == NPZ:
        return Npz.open(origin)
    if any(origin.glob("*.safetensors")):
        return Safetensors.open(origin)
    if raw.get("vision_config") and families.find(raw).pictures is None:
        raise CheckpointError(
            f"{origin} has a vision_config and no *.safetensors any more: the vision tower is "
            "carried along from there. Put the weight files back, or give another directory that "
            "has them with `model.clone(origin=jaxtune.Origin(directory))`"
        )
    return Safetensors({}, {})


def _described(raw: Mapping, dtype: str, was_tied: bool, tied: bool) -> dict:
    """The origin's config.json, true of what is written now."""
    config = _with_dtype(raw, dtype)
    config.pop("quantization_config", None)  # what is written is plain
    if not {"dtype", "torch_dtype"} & config.keys():
        config["torch_dtype"] = dtype
    return config if was_tied == tied else config | {"tie_word_embeddings": tied}


def _with_dtype(config: Mapping, dtype: str) -> dict:
    def changed(key, value):
        if isinstance(value, Mapping):
            return _with_dtype(value, dtype)
        return dtype if key in ("dtype", "torch_dtype") and value else value

    return {key: changed(key, value) for key, value in config.items()}
