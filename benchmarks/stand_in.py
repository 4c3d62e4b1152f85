"""Checkpoints without weights and rows made on the spot: what a plan reads, at any model's size."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).parents[1] / "configs"
TOKENIZER = CONFIGS / "tiny" / "base"
PICTURED = CONFIGS / "tiny_pictures"
WORDS = ("a", "small", "red", "square", "table", "beside", "two", "bright", "lamps")
ROWS = 320


def on_stand_in(config: Any, shape: Mapping, directory: Path, changes: Mapping[str, Any]) -> Any:
    """Returns a config on a stand-in of its model, with rows of up to its largest length.

    Args:
      config: The config, whose model and data need not be on this machine.
      shape: Content of the model's config.json.
      directory: Where the stand-in and its rows are written.
      changes: Further fields of the config, by dotted key.
    """
    from jaxtune.runs.plan.plan import changed

    config = changed(config, changes)
    longest = config.batch.max_length
    rows, held_out = (
        str(write_rows(directory / f"{name}.jsonl", config.data.task, longest))
        for name in ("train", "held_out")
    )
    pictured = "vision_config" in shape
    made = {
        "model.path": str(write_headers(directory / "base", shape)),
        "data.source": rows,
        "data.tokenizer": str(
            PICTURED / "base" / "paligemma_tokenizer.model" if pictured else TOKENIZER
        ),
        "data.rows": None,
    }
    if config.data.too_long == "fail":  # a word may be several tokens of the bundled tokenizer
        made["data.too_long"] = "skip"
    if config.eval.source or config.eval.split:
        made |= {"eval.source": held_out, "eval.split": "", "eval.rows": None}
    return changed(config, made)


def write_headers(directory: Path, shape: Mapping) -> Path:
    """Writes a bfloat16 checkpoint whose weights are a hole in the file; returns its directory.

    Its config.json, tensor names and shapes are those of the published one. The file is as long as
    that of the weights would be, and takes no room on the disk.
    """
    from jaxtune import families
    from jaxtune.checkpoint.load import leaf_shapes
    from jaxtune.families import names

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(shape))
    _, family, model = families.read_config(directory)
    tensors = names.by_tensor(names.pieces(family.tables[0], leaf_shapes(model)))
    entries, end = {}, 0
    for name, parts in tensors.items():
        size = parts[0].shape
        begin, end = end, end + 2 * math.prod(size)
        entries[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [begin, end]}
    header = json.dumps(entries).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
    return directory


def write_rows(file: Path, task: str, words: int) -> Path:
    """Writes rows of a task whose texts grow from one word to `words` words; returns the file."""
    with file.open("w") as lines:
        for number in range(ROWS):
            record = RECORDS[task](_text(1 + number * words // ROWS))
            lines.write(json.dumps(record) + "\n")
    return file


def _text(count: int) -> str:
    return " ".join(WORDS[i % len(WORDS)] for i in range(count))


def _table(text: str) -> dict[str, Any]:
    cell = {"value": text, "is_header": False, "column_span": 1, "row_span": 1}
    return {"table": [[cell]], "highlighted_cells": [[0, 0]], "target": _text(30)}


def _captioned(text: str) -> dict[str, Any]:
    picture = PICTURED / "pictures" / "train_000.png"
    return {"image": str(picture), "prefix": "caption en", "suffix": text}


# Rows of a task with a text; "" is that of a config without a task.
RECORDS = {
    "": lambda text: {"prefix": text, "suffix": f" {_text(16)}"},
    "palette": lambda text: {"description": text, "colors": ["#1f2a44", "#e8dcc5"] * 2},
    "totto": _table,
    "price": lambda text: {"prompt": f"{text}\n\nPrice is $", "completion": "79.00"},
    "caption": _captioned,
}
