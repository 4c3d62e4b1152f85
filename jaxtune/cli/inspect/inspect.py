"""What a checkpoint holds, from its headers and JSON files; weights are read to measure alone."""

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any

import jax
from jax.sharding import AbstractMesh

from jaxtune import sharding, tree
from jaxtune.checkpoint import hub, load
from jaxtune.checkpoint.formats import bnb
from jaxtune.checkpoint.formats.safetensors import TensorInfo
from jaxtune.checkpoint.load import Described
from jaxtune.cli import bits
from jaxtune.data.errors import DataError
from jaxtune.data.tokenizer import beside
from jaxtune.data.vocabulary import tokenizer_facts
from jaxtune.display.columns import few, grid, labelled, size_text, wrapped
from jaxtune.families import names
from jaxtune.models.decoder import LayerKind
from jaxtune.quant import is_quantized

DTYPES = ("auto", *load.DTYPES)
ENDS = ("embed/w", "head/w", "llm/embed/w", "llm/head/w")  # what "non-embedding" leaves out
NUMBERS = ("parameters", "stored", "per device")  # columns aligned to the right


@dataclass(frozen=True)
class Placement:
    """How one leaf lies on a mesh."""

    axes: tuple[str | tuple[str, ...] | None, ...]  # mesh axes that split each dimension
    undivided: tuple[str, ...]  # what the rules ask for and the shape does not allow
    bytes_per_device: int


@dataclass(frozen=True)
class Leaf:
    """One leaf of our tree, its layers together."""

    path: str
    stored_as: str  # the foreign name, with {layer} where its number stands
    rows: tuple[int, int] | None  # of the foreign tensor, where that holds several leaves
    shape: tuple[int, ...]
    dtypes: tuple[str, ...]
    parameters: int
    bytes: int  # as stored
    placement: Placement | None  # None without a mesh


@dataclass(frozen=True)
class Other:
    """Stored tensors that are known and no part of the model, such as a vision tower."""

    names: str  # what they have in common
    tensors: int
    dtypes: tuple[str, ...]
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Report:
    """All that `inspect` found; `dataclasses.asdict` makes it JSON."""

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
    quant: bits.Bits | None = None  # if it was asked for


def inspect(
    source: str | os.PathLike,
    mesh_axes: Mapping[str, int] | None = None,
    dtype: str = "auto",
    quant: Sequence[str] | None = None,
    text: str | os.PathLike | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Report:
    """Describe a checkpoint's directory, or a repository of the Hub, without its weights.

    With `mesh_axes`, also how `load` would lay the leaves over so many devices in `dtype`, where
    "auto" is the stored one. The devices need not be there.

    With `quant`, also what the checkpoint takes in fewer bits. This alone reads weights, if it
    names kinds: each is measured, predictions on the text of a file, and `tell` hears how far it is
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    bits.known(quant or (), text)
    sample = None if text is None else bits.read_text(text)
    mesh = _mesh(mesh_axes) if mesh_axes else None
    described = load.describe(*hub.locate_headers(source))
    leaves = _leaves(described, mesh, dtype)
    rows = described.model.config.vocabulary
    tokenizer = tokenizer_facts(_tokenizer_of(described.directory), described.raw, rows)
    return Report(
        source=os.fspath(source),
        directory=str(described.directory),
        model=_model(described),
        leaves=leaves,
        others=tuple(_others(described)),
        totals=_totals(leaves),
        mesh=dict(mesh_axes) if mesh else None,
        dtype=dtype,
        tokenizer=tokenizer,
        notes=(*_undivided(leaves), *_head_twice(described), *_tokenizer_notes(tokenizer)),
        quant=None if quant is None else bits.of(described, quant, sample, tell),
    )


def _tokenizer_of(checkpoint: Path) -> Path:
    """Where a checkpoint's tokenizer is looked for."""
    if not checkpoint.is_file():
        return checkpoint
    with contextlib.suppress(DataError):  # what is missing there is among the facts
        return beside(checkpoint)
    return checkpoint.parent


# The model


def _model(described: Described) -> dict[str, Any]:
    """The facts of a config in our terms."""
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
    """How far layers look back, as the pattern that repeats: `5 local (512) : 1 global`."""
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
    """The rotary scheme of all layers, or of the global and the local ones."""
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


# The tree


def _mesh(axes: Mapping[str, int]) -> AbstractMesh:
    """A mesh of no devices, which is enough to tell what each would hold."""
    unknown = [name for name in axes if name not in sharding.AXES]
    if unknown:
        raise ValueError(
            f"mesh axis {unknown[0]!r} is not known: expected {', '.join(sharding.AXES)}"
        )
    wrong = [f"{name}={size}" for name, size in axes.items() if size < 1]
    if wrong:
        raise ValueError(f"mesh {wrong[0]}: a size of 1 or more was expected")
    return AbstractMesh(tuple(axes.values()), tuple(axes))


def _leaves(described: Described, mesh: AbstractMesh | None, dtype: str) -> tuple[Leaf, ...]:
    pieces = names.by_leaf(described.parts)
    placed = _placements(described.held(dtype), mesh) if mesh else {}
    return tuple(
        Leaf(
            path=path,
            stored_as=load.stored_as(described.table, path),
            rows=_rows(pieces[path][0]),
            shape=shape,
            dtypes=_distinct(_stored_as(described, piece.theirs) for piece in pieces[path]),
            parameters=math.prod(shape),
            bytes=sum(_piece_bytes(described, piece) for piece in pieces[path]),
            placement=placed.get(path),
        )
        for path, shape in described.shapes.items()
    )


def _rows(piece: names.Piece) -> tuple[int, int] | None:
    rows = piece.rows
    return (rows.start, rows.stop) if rows.stop - rows.start < piece.among else None


def _stored_as(described: Described, name: str) -> str:
    """A tensor's dtype, or the kind of 4 bits that it is stored in."""
    if name in described.packed:
        return bnb.held_as(described.stored, described.packed[name])
    return str(described.stored.tensors[name].dtype)


def _piece_bytes(described: Described, piece: names.Piece) -> int:
    """What a piece takes in the files, with its scales; of a fused tensor its share."""
    taken = sum(info.nbytes for info in _tensors(described, piece.theirs))
    taken //= piece.shape[0] if piece.stacked else 1
    start, stop = (taken * row // piece.among for row in (piece.rows.start, piece.rows.stop))
    return stop - start


def _tensors(described: Described, name: str) -> list[TensorInfo]:
    """A tensor and, if it is stored in 4 bits, what lies beside it."""
    stored = described.stored.tensors
    if name not in described.packed:
        return [stored[name]]
    state = f"quant_state.bitsandbytes__{described.packed[name].kind}"
    beside = [f"{name}.{part}" for part in (*bnb.BESIDE, state)]
    return [stored[each] for each in (name, *beside) if each in stored]


def _placements(held: Mapping[str, Any], mesh: AbstractMesh) -> dict[str, Placement]:
    rules = tree.match(sharding.RULES, held, unused="allow")
    found = {}
    shapes = {path: leaf if is_quantized(leaf) else leaf.shape for path, leaf in held.items()}
    for path, where in sharding.shardings(shapes, mesh).items():
        leaf = held[path]
        axes = _axes(where, leaf.ndim)
        wanted = zip(leaf.shape, rules[path], axes, strict=False)
        undivided = [_asked(entry, mesh, size) for size, entry, got in wanted if got is None]
        found[path] = Placement(
            axes=axes,
            undivided=tuple(filter(None, undivided)),
            bytes_per_device=_device_bytes(leaf, where),
        )
    return found


def _axes(where: Any, dimensions: int) -> tuple[str | tuple[str, ...] | None, ...]:
    """The mesh axes that split each dimension of a leaf; if it is quantised, of its weight."""
    if not is_quantized(where):
        return (*where.spec, *[None] * (dimensions - len(where.spec)))
    # Of codes [..., blocks, block, out], either of two may be split: together they are the inputs.
    *layers, blocks, block, outputs = where.codes.spec
    return (*layers, blocks or block, outputs)


def _device_bytes(leaf: Any, where: Any) -> int:
    """What a device holds of a leaf's arrays."""

    def bits_of(array: Any, placed: Any) -> int:
        # By bits: a device holds two 4-bit codes in a byte, where their dtype says one.
        size = math.prod(placed.shard_shape(array.shape))
        return size * jax.dtypes.itemsize_bits(array.dtype)

    return sum(jax.tree.leaves(jax.tree.map(bits_of, leaf, where))) // 8


def _asked(entry: str | tuple | None, mesh: AbstractMesh, size: int) -> str | None:
    """Why a dimension is left whole, where a rule asks for more: `fsdp=8 does not divide 211`."""
    names = entry if isinstance(entry, tuple) else (entry,)
    axes = [f"{name}={mesh.shape[name]}" for name in names if mesh.shape.get(name, 1) > 1]
    return f"{', '.join(axes)} does not divide {size:,}" if axes else None


def _others(described: Described) -> Iterator[Other]:
    """One entry for each of the family's patterns that tensors outside the model match."""
    ours = {piece.theirs for piece in described.parts}
    shapes = bnb.shapes(described.stored, described.packed)
    left = {name: shape for name, shape in shapes.items() if name not in ours}
    for pattern in (*described.family.other, ".*"):  # the last: a tied head stored again
        found = {name: left.pop(name) for name in names.matching([pattern], left)}
        if found:
            yield Other(
                names=_common(list(found)),
                tensors=len(found),
                dtypes=_distinct(_stored_as(described, name) for name in found),
                parameters=sum(map(math.prod, found.values())),
                bytes=sum(info.nbytes for name in found for info in _tensors(described, name)),
            )


def _common(found: Sequence[str]) -> str:
    """`vision_tower.*`: what names have in common, up to a dot."""
    first, last = (name.split(".") for name in (min(found), max(found)))
    shared = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    parts = [part for part, _ in shared]
    return ".".join(parts if parts == first else [*parts, "*"])


def _distinct(kinds: Iterable[str]) -> tuple[str, ...]:
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
    """A line for each split that the rules ask for and shapes do not allow."""
    paths: dict[str, list[str]] = {}
    for leaf in leaves:
        for reason in leaf.placement.undivided if leaf.placement else ():
            paths.setdefault(reason, []).append(leaf.path)
    return [
        f"{reason}, so this leaves whole {few(left, len(left))}" for reason, left in paths.items()
    ]


def _head_twice(described: Described) -> list[str]:
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
        first = [_token(entry) for entry in tokenizer["first_past_the_rows"]]
        yield (
            f"the tokenizer has {count:,} tokens for which the embedding, of "
            f"{tokenizer['embedding_rows']:,} rows, has none: {few(first, count)}"
        )


# At the terminal


def table(report: Report, names: bool = False) -> str:
    """The report as text; with `names`, those that leaves have in the files, in wider lines."""
    sections = [
        [f"{report.source}: {report.model['family']}, model_type {report.model['model_type']}"],
        labelled(_model_lines(report.model)),
        _tree_lines(report, names),
        labelled(_total_lines(report)),
        labelled(_tokenizer_lines(report.tokenizer)),
        *(bits.sections(report.quant) if report.quant else ()),
        [line for note in report.notes for line in wrapped("note: ", note)],
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def _model_lines(model: Mapping[str, Any]) -> dict[str, str]:
    sizes = f"width {model['width']:,}, hidden {model['hidden']:,}, {model['activation']}"
    heads = f"{model['heads']} heads of {model['head_size']}"
    if model["kv_heads"] != model["heads"]:
        heads += f", {model['kv_heads']} for keys and values"
    norms = [
        f"RMS, epsilon {model['norm_epsilon']:g}",
        "1 + scale" if model["norm_offset"] else "",
        "on queries and keys too" if model["qk_norm"] else "",
        "after each branch too" if model["post_norms"] else "",
    ]
    caps = {"attention": model["attention_softcap"], "logits": model["logit_softcap"]}
    tied = "the embedding" if model["tied"] else "a matrix of its own"
    return {
        "layers": f"{model['layers']}, {sizes}",
        "attention": f"{heads}; {model['windows']}",
        "rope": "; ".join(_rope_text(rope, model["head_size"]) for rope in model["ropes"]),
        "norms": ", ".join(filter(None, norms)),
        "softcaps": ", ".join(f"{name} {cap:g}" for name, cap in caps.items() if cap),
        "vocabulary": f"{model['vocabulary']:,}; the head is {tied}",
        "context": f"{model['context']:,} tokens",
        "pictures": _pictures_text(model["pictures"]) if model["pictures"] else "",
    }


def _pictures_text(pictures: Mapping[str, Any]) -> str:
    tower = pictures["tower"]
    count = (tower["side"] // tower["patch"]) ** 2
    return (
        f"{tower['side']} × {tower['side']}, {count:,} tokens each; {tower['layers']} layers, "
        f"width {tower['width']:,}, hidden {tower['hidden']:,}, {tower['heads']} heads"
    )


def _rope_text(rope: Mapping[str, Any], head_size: int) -> str:
    text = f"theta {rope['theta']:,.10g}"
    if rope["scheme"] != "default":
        text += f", {rope['scheme']}"
    if rope["rotated"] < head_size:
        text += f", {rope['rotated']} features of a head"
    return text if rope["layers"] == "all" else f"{rope['layers']} {text}"


def _tree_lines(report: Report, names: bool) -> list[str]:
    """Leaves and their total, in columns."""
    last = ("sharding", "per device") if report.mesh else ("stored",)
    columns = ("leaf", "shape", "dtype", "parameters", *last, *(("stored as",) if names else ()))
    totals = {
        "leaf": "total",
        "parameters": f"{report.totals['parameters']:,}",
        "stored": size_text(report.totals["bytes"]),
        "per device": size_text(report.totals.get("bytes_per_device", 0)),
    }
    return grid(columns, [*map(_leaf_cells, report.leaves), totals], NUMBERS)


def _leaf_cells(leaf: Leaf) -> dict[str, str]:
    cells = {
        "leaf": leaf.path,
        "shape": " × ".join(map(str, leaf.shape)),
        "dtype": ", ".join(leaf.dtypes),
        "parameters": f"{leaf.parameters:,}",
        "stored": size_text(leaf.bytes),
        "stored as": leaf.stored_as + ("[{}:{}]".format(*leaf.rows) if leaf.rows else ""),
    }
    if leaf.placement:
        split = any(leaf.placement.axes)
        cells["sharding"] = ", ".join(map(_axis, leaf.placement.axes)) if split else "replicated"
        cells["per device"] = size_text(leaf.placement.bytes_per_device)
    return cells


def _axis(axis: str | tuple[str, ...] | None) -> str:
    return "+".join(axis) if isinstance(axis, tuple) else axis or "-"


def _total_lines(report: Report) -> dict[str, str]:
    totals = report.totals
    ends = "the embedding" if report.model["tied"] else "the embedding and the head"
    stored, single, half = (
        size_text(totals[f"bytes{kind}"]) for kind in ("", "_in_float32", "_in_bfloat16")
    )
    lines = {
        "parameters": f"{totals['parameters']:,}: {totals['embedding']:,} in {ends}, "
        f"{totals['non_embedding']:,} elsewhere",
        "bytes": f"{stored} as stored, {single} in float32, {half} in bfloat16",
        "not loaded": "; ".join(
            f"{other.names} ({other.tensors:,} tensors, {size_text(other.bytes)})"
            for other in report.others
        ),
    }
    if report.mesh:
        axes = ", ".join(f"{name}={size}" for name, size in report.mesh.items())
        dtype = "the stored dtype" if report.dtype == "auto" else report.dtype
        lines["mesh"] = (
            f"{axes}: {math.prod(report.mesh.values()):,} devices, each with "
            f"{size_text(totals['bytes_per_device'])} in {dtype}"
        )
    return lines


def _tokenizer_lines(tokenizer: Mapping[str, Any]) -> dict[str, str]:
    if not tokenizer["kind"]:
        return {}
    special = {role: entry for role, entry in tokenizer["special"].items() if entry}
    bos = {True: "added to every text", False: "not added", None: "added or not: no file says"}
    lines = [
        f"{role} {_token(entry)}" + (f" ({bos[tokenizer['adds_bos']]})" if role == "bos" else "")
        for role, entry in special.items()
    ]
    return {
        "tokenizer": f"{tokenizer['kind']} in {tokenizer['file']}, {tokenizer['tokens']:,} tokens",
        "special": ", ".join(lines),
        "stops at": ", ".join(map(_token, tokenizer["stops"])),
        "chat": "has a template" if tokenizer["chat_template"] else "no template",
        "missing": ", ".join(tokenizer["missing"]),
    }


def _token(entry: Mapping[str, Any]) -> str:
    token = entry["token"] or "unnamed"
    shown = token if token.isprintable() else repr(token)
    return shown if entry["id"] is None else f"{shown} {entry['id']}"
