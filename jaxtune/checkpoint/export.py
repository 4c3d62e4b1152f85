"""A model and its variables back into the layout that its makers publish."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxtune import families, tree
from jaxtune.checkpoint import names
from jaxtune.checkpoint.files import CheckpointError, Safetensors, new_directory, write_sharded
from jaxtune.checkpoint.hub import COMPANIONS
from jaxtune.checkpoint.load import cast
from jaxtune.checkpoint.names import Piece
from jaxtune.models.decoder import Decoder

Plan = dict[str, tuple[names.Shape, np.dtype]]  # tensors to write, by foreign name


def save_merged(
    model: Decoder,
    variables: Mapping,
    directory: str | os.PathLike,
    dtype: str | None = "float16",
    *,
    max_shard_bytes: int = 5_000_000_000,
    overwrite: bool = False,
) -> Path:
    """Write a checkpoint in Hugging Face's layout, as transformers loads it.

    `dtype=None` keeps each leaf's own. Nothing stands under the final name until all of it does.
    """
    origin = _origin(model)
    raw, family, described = families.read(origin)
    target = Path(directory).expanduser()
    with _stored(origin) as stored:
        writer = _Writer(variables, family, stored, dtype)
        if jax.process_index() > 0:
            for name in writer.plan:  # the leaves' shards are gathered by all processes together
                writer.tensor(name)
            return target
        config = _described(raw, writer.dtype, described.tied, model.config.tied)
        with new_directory(target, overwrite=overwrite) as partial:
            write_sharded(partial, writer.plan, writer.tensor, max_shard_bytes)
            text = json.dumps(config, indent=2, ensure_ascii=False)
            (partial / "config.json").write_text(text + "\n", encoding="utf-8")
            for pattern in COMPANIONS:
                for file in filter(Path.is_file, origin.glob(pattern)):
                    shutil.copyfile(file, partial / file.name)
    return target


class _Writer:
    """Makes each foreign tensor when its turn comes, from our leaves or from the origin's file."""

    def __init__(
        self,
        variables: Mapping,
        family: families.Family,
        stored: Safetensors | None,
        dtype: str | None,
    ):
        held = stored.tensors if stored else {}
        self.leaves = tree.flatten(variables["params"])
        self.stored = stored
        self.dtype = dtype or str(self.leaves["embed/w"].dtype)
        table = names.choose(family.tables, held)
        parts = names.pieces(table, {path: leaf.shape for path, leaf in self.leaves.items()})
        self.tensors = names.by_tensor(parts)
        kind = jnp.dtype(dtype) if dtype else None
        plan: Plan = {
            name: (pieces[0].shape, kind or self.leaves[pieces[0].path].dtype)
            for name, pieces in self.tensors.items()
        }
        for name in names.matching(family.other, held):
            info = held[name]
            plan[name] = (info.shape, kind or info.dtype)
        # The order in which every process must gather, and the one in which files hold tensors.
        self.plan = dict(sorted(plan.items(), key=lambda item: -item[1][1].itemsize))

    def tensor(self, name: str) -> np.ndarray:
        """One foreign tensor in the dtype announced for it."""
        if name in self.tensors:
            rows = [self._rows(piece) for piece in self.tensors[name]]
            found = np.concatenate(rows) if len(rows) > 1 else rows[0]
        else:
            found = self.stored.read(name)
        return cast(found, self.plan[name][1], name)

    def _rows(self, piece: Piece) -> np.ndarray:
        leaf = self.leaves[piece.path]
        part = leaf if piece.layer is None else leaf[piece.layer]
        if isinstance(part, jax.Array) and not part.is_fully_addressable:
            part = multihost_utils.process_allgather(part, tiled=True)
        host = np.asarray(part)
        return host.T if piece.transposed else host


def _origin(model: Decoder) -> Path:
    """Where the model's config.json and tokenizer are."""
    if model.origin and (Path(model.origin) / "config.json").is_file():
        return Path(model.origin)
    raise CheckpointError(
        f"the model's origin is {model.origin or 'not set'}: config.json and tokenizer files are "
        "carried along from there. Give it with `model.clone(origin=directory)`"
    )


@contextlib.contextmanager
def _stored(origin: Path) -> Iterator[Safetensors | None]:
    """The origin's weights, if it has any: a model may have been made from a bare config.json."""
    if not any(origin.glob("*.safetensors")):
        yield None
        return
    with Safetensors.open(origin) as stored:
        yield stored


def _described(raw: Mapping, dtype: str, was_tied: bool, tied: bool) -> dict:
    """The origin's config.json, true of what is written now."""
    config = _with_dtype(raw, dtype)
    if not {"dtype", "torch_dtype"} & config.keys():
        config["torch_dtype"] = dtype
    return config if was_tied == tied else config | {"tie_word_embeddings": tied}


def _with_dtype(config: Mapping, dtype: str) -> dict:
    def changed(key, value):
        if isinstance(value, Mapping):
            return _with_dtype(value, dtype)
        return dtype if key in ("dtype", "torch_dtype") and value else value

    return {key: changed(key, value) for key, value in config.items()}
