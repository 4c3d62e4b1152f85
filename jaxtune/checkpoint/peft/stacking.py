"""Converts between PEFT's adapters, one per module, and ours, one per weight with layers stacked.

Modules are named as in the transformers model, such as `model.layers.0.mlp.up_proj`. Where a module
fuses several of our weights, its adapter is their adapters joined: see `joined`.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxtune.adapters.lora import Lora, one_layer
from jaxtune.checkpoint.formats.safetensors import CheckpointError, Safetensors
from jaxtune.checkpoint.peft.adapter_config import Settings
from jaxtune.families import names
from jaxtune.families.names import Piece, Shape
from jaxtune.sharding import put, to_host

PREFIX = "base_model.model."
PARTS = {"a": "lora_A.weight", "b": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
# Some PEFT releases ended the magnitude's name in .weight, and PEFT still reads it.
TENSOR = re.compile(
    rf"{re.escape(PREFIX)}(?P<module>.+)\."
    r"((?P<a>lora_A\.weight)|(?P<b>lora_B\.weight)|(?P<magnitude>lora_magnitude_vector(\.weight)?))"
)
LONGEST_NAME = 500  # characters of a tensor's name
RANKS = "jaxtune_ranks"  # in a file's metadata: the rank of each weight in a fused module


@dataclass(frozen=True)
class LowRank:
    """Adapter of one module: adds scale · b @ a @ x, or with a magnitude is in DoRA's form."""

    a: np.ndarray  # [r, in]
    b: np.ndarray  # [out, r]
    scale: np.float32
    magnitude: np.ndarray | None = None  # [out]


Modules = Mapping[str, LowRank]  # by module name
Adapters = Mapping[str, Lora]  # by the path of their weight
Linears = Mapping[str, Sequence[Piece]]  # the pieces of every linear map, by module name
ByPath = dict[str, list[tuple[Piece, LowRank]]]  # parts of adapters, by the path of their weight


def linears(table: names.Table, shapes: Mapping[str, Shape]) -> Linears:
    """Returns the linear maps of a model with leaves of these shapes, by module name in `table`."""
    tensors = names.by_tensor(names.pieces(table, shapes))
    return {
        tensor.removesuffix(".weight"): pieces
        for tensor, pieces in tensors.items()
        if pieces[0].transposed
    }


@jax.jit
def column_norms(w: Any) -> jax.Array:  # [..., in, out] -> float32[..., out]
    """Returns the norm of every column of `w`: the magnitudes with which DoRA has no effect."""
    if w.ndim > 2:  # by layers: a dequantised weight takes several times the memory
        return jax.lax.map(column_norms, w)
    return jnp.linalg.norm(w.astype(jnp.float32), axis=-2)


# Ours to PEFT's


def tensors(modules: Modules) -> dict[str, np.ndarray]:
    """Returns all tensors of an adapter by their names in PEFT's files."""
    return {
        f"{PREFIX}{module}.{name}": array
        for module, adapter in modules.items()
        for part, name in PARTS.items()
        if (array := getattr(adapter, part)) is not None
    }


def joined(
    pieces: Sequence[Piece],
    adapters: Adapters,
    norms: Mapping[str, np.ndarray],  # column norms of weights without an adapter, by path
) -> LowRank:
    """Joins the adapters of the weights in one module into the module's adapter.

    The ranks add up: the `a` of the weights are stacked along the rank, and their `b` become the
    blocks of a block-diagonal matrix, which also takes up differences between their scales. If the
    adapters have magnitudes, those of weights without an adapter are their column norms.
    """
    present = [
        (piece, one_layer(adapters[piece.path], piece.layer))
        for piece in pieces
        if piece.path in adapters
    ]
    a = np.concatenate([part.a.T for _, part in present])
    b = np.zeros((pieces[0].shape[0], len(a)), present[0][1].b.dtype)
    scale = max((part.scale for _, part in present), key=abs)
    start = 0
    for piece, part in present:
        stop = start + part.a.shape[-1]
        b[piece.rows, start:stop] = part.b.T * (1 if part.scale == scale else part.scale / scale)
        start = stop
    return LowRank(a, b, np.float32(scale), _joined_magnitude(pieces, adapters, norms))


def _joined_magnitude(
    pieces: Sequence[Piece], adapters: Adapters, norms: Mapping[str, np.ndarray]
) -> np.ndarray | None:
    stacks = [
        adapters[piece.path].magnitude if piece.path in adapters else norms.get(piece.path)
        for piece in pieces
    ]
    if any(stack is None for stack in stacks):
        return None
    rows = zip(stacks, pieces, strict=True)
    return np.concatenate([s if piece.layer is None else s[piece.layer] for s, piece in rows])


def noted_ranks(adapters: Adapters, modules: Linears) -> dict[str, str]:
    """Returns metadata with the rank of each weight in fused modules; empty if none are fused."""
    fused = {piece.path for pieces in modules.values() if len(pieces) > 1 for piece in pieces}
    ranks = {path: adapters[path].a.shape[-1] for path in sorted(fused & adapters.keys())}
    return {RANKS: json.dumps(ranks)} if ranks else {}


# PEFT's to ours


def read_pairs(stored: Safetensors, settings: Settings) -> dict[str, LowRank]:
    """Reads the adapter of every module in a file; raises if the file does not match its config."""
    grouped: dict[str, dict[str, str]] = {}
    problems = []
    for name, info in stored.tensors.items():
        match = TENSOR.fullmatch(name) if len(name) <= LONGEST_NAME else None
        if match and info.dtype.kind not in "biu":
            part = next(part for part in PARTS if match[part])
            grouped.setdefault(match["module"], {})[part] = name
        else:
            problems.append(
                f"  {name[:LONGEST_NAME]} {info.dtype}{list(info.shape)}: not a LoRA tensor"
                + _advice(name)
            )
    for module, parts in grouped.items():
        shapes = {part: stored.tensors[name].shape for part, name in parts.items()}
        problems += [f"  {module}: {each}" for each in _broken_promises(module, shapes, settings)]
    if problems:
        files = ", ".join(sorted({str(info.file) for info in stored.tensors.values()}))
        raise CheckpointError(names.listed(f"{files} does not match {settings.file}:", problems))
    return {
        module: LowRank(
            scale=settings.scale(module),
            **{part: stored.read(name).astype(np.float32) for part, name in parts.items()},
        )
        for module, parts in grouped.items()
    }


def _advice(name: str) -> str:
    if ".lora_" in name or not name.endswith(".weight"):
        return ""
    return (
        ", but a full weight. If it belongs to the base, write the adapter without it:"
        " save_pretrained(…, save_embedding_layers=False)"
    )


def _broken_promises(module: str, shapes: Mapping[str, Shape], settings: Settings) -> Iterator[str]:
    wanted = PARTS.keys() if settings.dora else PARTS.keys() - {"magnitude"}
    for part in sorted(wanted ^ shapes.keys()):
        problem = "missing" if part in wanted else "present, but use_dora is false"
        yield f"{PARTS[part]} is {problem}"
    if not settings.targeted(module):
        yield "it is present, but target_modules (or a setting that limits them) excludes it"
    rank = settings.rank(module)
    promised = {"a": (rank, None), "b": (None, rank), "magnitude": (None,)}
    for part, shape in shapes.items():
        if len(shape) != len(promised[part]) or any(
            length not in (None, size) for length, size in zip(promised[part], shape, strict=True)
        ):
            yield f"{PARTS[part]} has shape {list(shape)}, but the config's rank is {rank}"


def ranks_noted(metadata: Mapping[str, str]) -> dict[str, int]:
    """Returns the ranks that `noted_ranks` put into a file's metadata, or {} if they are invalid.

    The tensors may have been changed since they were noted; `_spans` checks for that.
    """
    try:
        noted = json.loads(metadata.get(RANKS, "{}"))
    except (TypeError, ValueError, RecursionError):
        return {}
    fine = isinstance(noted, dict) and all(type(n) is int and n > 0 for n in noted.values())
    return noted if fine else {}


def by_path(found: Modules, modules: Linears, ranks: Mapping[str, int]) -> ByPath:
    """Splits the adapters of modules into parts for our weights.

    Returns, by the path of the weight, its pieces (layers) that have an adapter, each with its part
    of the module's adapter.
    """
    grouped: ByPath = {}
    for module, pieces in modules.items():
        if adapter := found.get(module):
            spans = _spans(adapter, pieces, [ranks.get(piece.path, 0) for piece in pieces])
            for piece, span in zip(pieces, spans, strict=True):
                part = _part(adapter, piece.rows, span)
                if len(part.a):
                    grouped.setdefault(piece.path, []).append((piece, part))
    return grouped


def _spans(adapter: LowRank, pieces: Sequence[Piece], ranks: Sequence[int]) -> list[slice]:
    """Returns the slice of a module's rank that belongs to each of its weights.

    That is the weight's own part if `b` is block-diagonal with blocks of the noted `ranks`, and the
    whole rank otherwise.
    """
    spans = [slice(s - rank, s) for s, rank in zip(accumulate(ranks), ranks, strict=True)]
    outside = np.ones(adapter.b.shape, bool)
    for piece, span in zip(pieces, spans, strict=True):
        outside[piece.rows, span] = False
    if len(pieces) > 1 and sum(ranks) == len(adapter.a) and not adapter.b[outside].any():
        return spans
    return [slice(None)] * len(pieces)


def _part(adapter: LowRank, rows: slice, span: slice) -> LowRank:
    magnitude = None if adapter.magnitude is None else adapter.magnitude[rows]
    return LowRank(adapter.a[span], adapter.b[rows, span], adapter.scale, magnitude)


def stacked(parts: Sequence[tuple[Piece, LowRank]], weight: Any, settings: Settings) -> Lora:
    """Stacks the parts of a weight's adapter over its layers.

    Lower ranks are padded with zeros to the highest. A layer without a part gets zeros and, with
    DoRA, its column norms as magnitudes, so that it is left unchanged.
    """
    sizes = shapes(parts, weight, settings)
    a, b = (np.zeros(each.shape, np.float32) for each in (sizes.a, sizes.b))
    scale = np.full(sizes.scale.shape, parts[0][1].scale, np.float32)
    magnitude = np.array(to_host(column_norms(weight))) if settings.dora else None
    for piece, part in parts:
        at = () if piece.layer is None else (piece.layer,)
        a[*at, :, : len(part.a)] = part.a.T
        b[*at, : len(part.a)] = part.b.T
        scale[at] = part.scale
        if magnitude is not None:
            magnitude[at] = part.magnitude
    dropout = np.full(scale.shape, settings.dropout, np.float32) if settings.dropout else None
    return _beside(weight, Lora(a, b, scale, dropout, magnitude))


def shapes(parts: Sequence[tuple[Piece, LowRank]], weight: Any, settings: Settings) -> Lora:
    """Returns the shapes of the adapter that `stacked` makes of the parts."""
    *layers, inside, outside = weight.shape
    rank = max(len(part.a) for _, part in parts)

    def array(*size: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(size, np.float32)

    return Lora(
        a=array(*layers, inside, rank),
        b=array(*layers, rank, outside),
        scale=array(*layers),
        dropout=array(*layers) if settings.dropout else None,
        magnitude=array(*layers, outside) if settings.dora else None,
    )


def _beside(weight: Any, adapter: Lora) -> Lora:
    """Puts an adapter on the devices of its weight, replicated on each."""
    if isinstance(weight.sharding, NamedSharding):
        return put(adapter, NamedSharding(weight.sharding.mesh, PartitionSpec()))
    return jax.tree.map(jnp.asarray, adapter)
