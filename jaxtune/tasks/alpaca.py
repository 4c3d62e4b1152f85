"""Instructions in Stanford Alpaca's format: an instruction, an optional input, and the output."""

from collections.abc import Mapping
from typing import Any

from jaxtune.data.errors import RowError, column
from jaxtune.metrics.chrf import CHRF
from jaxtune.metrics.rouge import ROUGE_L
from jaxtune.tasks import short

COLUMNS = {
    "instruction": "what to do",
    "input": "what to do it with; missing or empty if the instruction says all",
    "output": "the answer",
}
METRICS = (ROUGE_L, CHRF)
ASK = "instruction"
ALONE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n"
)
PAIRED = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
)


def prefix(record: Mapping[str, Any], place: str) -> str:
    """Returns Alpaca's prompt, up to where the answer begins."""
    parts = [f"### Instruction:\n{_text(record, 'instruction', place)}\n\n"]
    given = _text(record, "input", place) if record.get("input") else ""
    if given:
        parts.append(f"### Input:\n{given}\n\n")
    return "".join([PAIRED if given else ALONE, *parts, "### Response:\n"])


def suffix(record: Mapping[str, Any], place: str) -> str:
    """Returns the completion, which is the column `output`."""
    return _text(record, "output", place)


def _text(record: Mapping[str, Any], name: str, place: str) -> str:
    value = column(record, name, place)
    if not isinstance(value, str):
        raise RowError(place, f"column {name!r} is {short(value)}; expected a text")
    return value
