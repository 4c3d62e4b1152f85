"""Describes a checkpoint from its headers and JSON files, without reading its weights.

Only measuring the effect of quantisation reads them.
"""

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any

from jax.sharding import AbstractMesh

from jaxtune.checkpoint import load, sources
from jaxtune.checkpoint.dtypes import dtype_name
from jaxtune.checkpoint.formats import bnb
from jaxtune.checkpoint.formats.safetensors import TensorInfo
from jaxtune.checkpoint.load import Described
from jaxtune.cli.inspect.placement import Placement, abstract_mesh, placements
from jaxtune.cli.inspect.quant_measure import quant_report
from jaxtune.cli.inspect.quant_report import QuantReport, check_kinds, read_text
from jaxtune.data.errors import DataError
from jaxtune.data.side_files import SideFiles
from jaxtune.data.tokenizer import beside
from jaxtune.data.vocabulary import tokenizer_facts
from jaxtune.display.columns import few
from jaxtune.families import names
from jaxtune.files.fetched import known_as
from jaxtune.models.decoder import LayerKind

ENDS = ("embed/w", "head/w", "llm/embed/w", "llm/head/w")  # leaves not counted as "non-embedding"


@dataclass(frozen=True)
class Leaf:
    """One leaf of our variables, with all its layers."""

    path: str
    stored_as: str  # the foreign tensor's name, with {layer} in place of the layer's number
    rows: tuple[int, int] | None  # of a foreign tensor that holds several leaves; else None
    shape: tuple[int, ...]
    dtypes: tuple[str, ...]
    parameters: int
    bytes: int  # as stored
    placement: Placement | None  # None without a mesh


@dataclass(frozen=True)
class Other:
    """Stored tensors that are known but not part of the model, such as a vision tower."""

    names: str  # their common prefix, such as `vision_tower.*`
    tensors: int
    dtypes: tuple[str, ...]
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Report:
    """The findings of `inspect`; `dataclasses.asdict` converts them to JSON content."""

    source: str
    directory: str
    model: dict[str, Any]
    leaves: tuple[Leaf, ...]
    others: tuple[Other, ...]
    totals: dict[str, int]
    mesh: dict[str, int] | None
    dtype: str  # of the leaves on the mesh
    tokenizer: dict[str, Any]
    notes: tuple[str, ...]
    quant: QuantReport | None = None  # None if not requested


def inspect(
    source: str | os.PathLike,
    mesh_axes: Mapping[str, int] | None = None,
    dtype: str = "auto",
    quant: Sequence[str] | None = None,
    text: str | os.PathLike | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Report:
    """Describes a checkpoint, without reading its weights unless `quant` names kinds.

    Args:
      source: A checkpoint's path, or a Hub repository.
      mesh_axes: Sizes of mesh axes by name, to report how `load` would shard the leaves over such
        a mesh. Its devices need not exist.
      dtype: Dtype of the leaves on the mesh; "auto" is the stored one.
      quant: Kinds whose effect on weights and predictions is measured, which reads the weights. If
        empty, only sizes in fewer bits are reported; if None, nothing on quantisation.
      text: File of the text to compare predictions on; by default, a sample text.
      tell: Called with progress texts while kinds are measured.

    Returns:
      The report.
    """
    dtype = dtype_name(dtype)
    check_kinds(quant or (), text)
    sample = None if text is None else read_text(text)
    mesh = abstract_mesh(mesh_axes) if mesh_axes else None
    described = load.describe(*sources.locate_headers(source, bool(quant)))
    leaves = _leaves(described, mesh, dtype)
    rows = described.model.config.vocabulary
    files = SideFiles(_tokenizer_of(described.directory), strict=False)
    tokenizer = tokenizer_facts(files, described.raw, rows)
    return Report(
        source=os.fspath(source),
        directory=known_as(described.directory),
        model=_model(described),
        leaves=leaves,
        others=tuple(_others(described)),
        totals=_totals(leaves),
        mesh=dict(mesh_axes) if mesh else None,
        dtype=dtype,
        tokenizer=tokenizer,
        notes=(*_undivided(leaves), *_head_twice(described), *_tokenizer_notes(tokenizer)),
        quant=None if quant is None else quant_report(described, quant, sample, tell),
    )


def _tokenizer_of(checkpoint: Path) -> Path:
    """Returns the directory or file to look for a checkpoint's tokenizer in."""
    if not checkpoint.is_file():
        return checkpoint
    with contextlib.suppress(DataError):  # `tokenizer_facts` reports a missing tokenizer
        return beside(checkpoint)
    return checkpoint.parent


def _model(described: Described) -> dict[str, Any]:
    """Returns the facts of the model's config under our names."""
    config = described.model.config
    return {
        "family": described.family.title,
        "model_type": described.family.model_type,
        "layers": len(config.layers),
        "width": config.width,
        "hidden": config.hidden,
        "activation": config.activation,
        "heads": config.heads,
        "kv_heads": config.kv_heads,
        "head_size": config.head_size,
        "windows": _windows([kind.window for kind in config.layers]),
        "ropes": _ropes(config.kinds),
        "norm_epsilon": config.norm_epsilon,
        "norm_offset": config.norm_offset,
        "qk_norm": config.qk_norm,
        "post_norms": config.post_norms,
        "attention_softcap": config.attention_softcap,
        "logit_softcap": config.logit_softcap,
        "vocabulary": config.vocabulary,
        "tied": config.tied,
        "context": config.context,
        "pictures": described.model.pictures and asdict(described.model.pictures),
    }


def _windows(windows: Sequence[int | None]) -> str:
    """Returns the attention windows as a repeating pattern, such as `5 local (512) : 1 global`."""
    count = len(windows)
    period = next(
        size
        for size in range(1, count + 1)
        if all(window == windows[i % size] for i, window in enumerate(windows))
    )
    reach = [
        (len(list(run)), "global" if window is None else f"local ({window:,})")
        for window, run in groupby(windows[:period])
    ]
    if len(reach) == 1:
        return f"all {reach[0][1]}"
    return (" : " if period < count else ", then ").join(f"{size} {kind}" for size, kind in reach)


def _ropes(kinds: Iterable[LayerKind]) -> list[dict[str, Any]]:
    """Returns the rotary scheme of all layers, or one each of the global and local layers."""
    reaches = {kind.rope: "global" if kind.window is None else "local" for kind in kinds}
    return [
        {
            "layers": reach if len(reaches) > 1 else "all",
            "theta": rope.theta,
            "scheme": rope.scheme,
            "rotated": 2 * len(rope.short),  # features of each head
        }
        for rope, reach in reaches.items()
    ]


def _leaves(described: Described, mesh: AbstractMesh | None, dtype: str) -> tuple[Leaf, ...]:
    pieces = names.by_leaf(described.parts)
    placed = placements(described.held(dtype), mesh) if mesh else {}
    return tuple(
        Leaf(
            path=path,
            stored_as=load.stored_as(described.table, path),
            rows=_rows(pieces[path][0]),
            shape=shape,
            dtypes=distinct(stored_as(described, piece.theirs) for piece in pieces[path]),
            parameters=math.prod(shape),
            bytes=sum(_piece_bytes(described, piece) for piece in pieces[path]),
            placement=placed.get(path),
        )
        for path, shape in described.shapes.items()
    )


def _rows(piece: names.Piece) -> tuple[int, int] | None:
    """Returns the rows of a foreign tensor that a leaf takes, or None if it takes all."""
    rows = piece.rows
    return (rows.start, rows.stop) if rows.stop - rows.start < piece.among else None


def stored_as(described: Described, name: str) -> str:
    """Returns the dtype of a stored tensor, or its 4-bit kind."""
    if name in described.packed:
        return bnb.held_as(described.stored, described.packed[name])
    return str(described.stored.tensors[name].dtype)


def _piece_bytes(described: Described, piece: names.Piece) -> int:
    """Returns a piece's bytes in the files, with its scales; of a fused tensor, its share."""
    taken = sum(info.nbytes for info in _tensors(described, piece.theirs))
    taken //= piece.shape[0] if piece.stacked else 1
    start, stop = (taken * row // piece.among for row in (piece.rows.start, piece.rows.stop))
    return stop - start


def _tensors(described: Described, name: str) -> list[TensorInfo]:
    """Returns a tensor and, if it is stored in 4 bits, the scales and state stored beside it."""
    stored = described.stored.tensors
    if name not in described.packed:
        return [stored[name]]
    state = f"quant_state.bitsandbytes__{described.packed[name].kind}"
    beside = [f"{name}.{part}" for part in (*bnb.BESIDE, state)]
    return [stored[each] for each in (name, *beside) if each in stored]


def _others(described: Described) -> Iterator[Other]:
    """Yields an entry for each pattern of the family that matches tensors outside the model."""
    ours = {piece.theirs for piece in described.parts}
    shapes = bnb.shapes(described.stored, described.packed)
    left = {name: shape for name, shape in shapes.items() if name not in ours}
    for pattern in (*described.family.other, ".*"):  # ".*": a tied head stored again
        found = {name: left.pop(name) for name in names.matching([pattern], left)}
        if found:
            yield Other(
                names=_common(list(found)),
                tensors=len(found),
                dtypes=distinct(stored_as(described, name) for name in found),
                parameters=sum(map(math.prod, found.values())),
                bytes=sum(info.nbytes for name in found for info in _tensors(described, name)),
            )


def _common(found: Sequence[str]) -> str:
    """Returns the common prefix of names, up to a dot, such as `vision_tower.*`."""
    first, last = (name.split(".") for name in (min(found), max(found)))
    shared = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    parts = [part for part, _ in shared]
    return ".".join(parts if parts == first else [*parts, "*"])


def distinct(kinds: Iterable[str]) -> tuple[str, ...]:
    """Returns the distinct values in order of first occurrence."""
    return tuple(dict.fromkeys(kinds))


def _totals(leaves: Sequence[Leaf]) -> dict[str, int]:
    count = sum(leaf.parameters for leaf in leaves)
    ends = sum(leaf.parameters for leaf in leaves if leaf.path in ENDS)
    totals = {
        "parameters": count,
        "embedding": ends,
        "non_embedding": count - ends,
        "bytes": sum(leaf.bytes for leaf in leaves),
        "bytes_in_float32": 4 * count,
        "bytes_in_bfloat16": 2 * count,
    }
    if leaves[0].placement:
        totals["bytes_per_device"] = sum(leaf.placement.bytes_per_device for leaf in leaves)
    return totals


def _undivided(leaves: Sequence[Leaf]) -> list[str]:
    """Returns a note for each split that the sharding rules request but shapes do not allow."""
    paths: dict[str, list[str]] = {}
    for leaf in leaves:
        for reason in leaf.placement.undivided if leaf.placement else ():
            paths.setdefault(reason, []).append(leaf.path)
    return [
        f"{reason}, so it does not shard {few(left, len(left))}" for reason, left in paths.items()
    ]


def _head_twice(described: Described) -> list[str]:
    """Returns a note if a head is stored although config.json ties it to the embedding."""
    head = load.stored_as(described.table, "head/w")
    if "head/w" in described.shapes or head not in described.stored.tensors:
        return []
    return [
        f"{head} is stored although config.json ties the head to the embedding: loading compares "
        "the two, and unties them if they differ"
    ]


def _tokenizer_notes(tokenizer: Mapping[str, Any]) -> Iterator[str]:
    yield from tokenizer["problems"]
    if count := tokenizer["past_the_rows"]:
        first = [token_text(entry) for entry in tokenizer["first_past_the_rows"]]
        yield (
            f"the tokenizer has {count:,} tokens beyond the {tokenizer['embedding_rows']:,} rows "
            f"of the embedding: {few(first, count)}"
        )


def token_text(entry: Mapping[str, Any]) -> str:
    token = entry["token"] or "unnamed"
    shown = token if token.isprintable() else repr(token)
    return shown if entry["id"] is None else f"{shown} {entry['id']}"
