"""Formats the report of `inspect` as text."""

import math
from collections.abc import Mapping
from typing import Any

from jaxtune.cli.inspect.quant_table import quant_sections
from jaxtune.cli.inspect.report import Leaf, Report, token_text
from jaxtune.display.columns import grid, labelled, size_text, wrapped
from jaxtune.display.escapes import plural

NUMBERS = ("parameters", "stored", "per device")  # columns aligned to the right


def table(report: Report, names: bool = False) -> str:
    """Formats a report as text; `names` adds the names of leaves in the files, in wider lines."""
    sections = [
        [f"{report.source}: {report.model['family']}, model_type {report.model['model_type']}"],
        labelled(_model_lines(report.model)),
        _tree_lines(report, names),
        labelled(_total_lines(report)),
        labelled(_tokenizer_lines(report.tokenizer)),
        *(quant_sections(report.quant) if report.quant else ()),
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
        "also on queries and keys" if model["qk_norm"] else "",
        "also after each branch" if model["post_norms"] else "",
    ]
    caps = {"attention": model["attention_softcap"], "logits": model["logit_softcap"]}
    head = "tied to the embedding" if model["tied"] else "a separate matrix"
    return {
        "layers": f"{model['layers']}, {sizes}",
        "attention": f"{heads}; {model['windows']}",
        "rope": "; ".join(_rope_text(rope, model["head_size"]) for rope in model["ropes"]),
        "norms": ", ".join(filter(None, norms)),
        "softcaps": ", ".join(f"{name} {cap:g}" for name, cap in caps.items() if cap),
        "vocabulary": f"{model['vocabulary']:,}; the head is {head}",
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
        text += f", {rope['rotated']} rotated features per head"
    return text if rope["layers"] == "all" else f"{rope['layers']} {text}"


def _tree_lines(report: Report, names: bool) -> list[str]:
    """Returns the table of leaves with their total."""
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
            f"{other.names} ({plural(other.tensors, 'tensor')}, {size_text(other.bytes)})"
            for other in report.others
        ),
    }
    if report.mesh:
        axes = ", ".join(f"{name}={size}" for name, size in report.mesh.items())
        dtype = "the stored dtype" if report.dtype == "auto" else report.dtype
        lines["mesh"] = (
            f"{axes}: {plural(math.prod(report.mesh.values()), 'device')}, each holding "
            f"{size_text(totals['bytes_per_device'])} in {dtype}"
        )
    return lines


def _tokenizer_lines(tokenizer: Mapping[str, Any]) -> dict[str, str]:
    if not tokenizer["kind"]:
        return {}
    special = {role: entry for role, entry in tokenizer["special"].items() if entry}
    bos = {
        True: "added to every text",
        False: "not added",
        None: "no file says whether it is added",
    }
    lines = [
        f"{role} {token_text(entry)}"
        + (f" ({bos[tokenizer['adds_bos']]})" if role == "bos" else "")
        for role, entry in special.items()
    ]
    return {
        "tokenizer": f"{tokenizer['kind']} in {tokenizer['file']}, {tokenizer['tokens']:,} tokens",
        "special": ", ".join(lines),
        "stop tokens": ", ".join(map(token_text, tokenizer["stops"])),
        "chat": "has a template" if tokenizer["chat_template"] else "no template",
        "missing": ", ".join(tokenizer["missing"]),
    }
