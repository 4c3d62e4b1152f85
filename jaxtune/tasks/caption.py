"""Captioning in PaliGemma's format: the prompt is `caption en` and a line break."""

from collections.abc import Mapping
from typing import Any

from jaxtune.data.errors import RowError
from jaxtune.metrics.bleu import BLEU4
from jaxtune.metrics.cider import CIDER
from jaxtune.metrics.rouge import ROUGE_L
from jaxtune.tasks import texts

PREFIX = "caption en"
COLUMNS = {
    "prefix": f"the instruction; {PREFIX!r} by default",
    "suffix": "the caption",
    "caption": "instead of suffix: the caption, or a list of captions",
    "captions": "all acceptable captions; the first is learnt if there is no other column",
}
METRICS = (CIDER, BLEU4, ROUGE_L)
ASK = "prefix"
CAPTIONS = ("suffix", "caption", "captions")


def prefix(record: Mapping[str, Any], place: str) -> str:
    """Returns the instruction on a line of its own."""
    instruction = texts(record, "prefix", place) or (PREFIX,)
    return f"{instruction[0]}\n"


def suffix(record: Mapping[str, Any], place: str) -> str:
    """Returns the caption, or the first of several."""
    return _first_of(CAPTIONS, record, place)[0]


def references(record: Mapping[str, Any], place: str) -> tuple[str, ...]:
    """Returns all captions of the first of `captions`, `caption` and `suffix` that has any."""
    return _first_of(CAPTIONS[::-1], record, place)


def _first_of(names: tuple[str, ...], record: Mapping[str, Any], place: str) -> tuple[str, ...]:
    """Returns the texts of the first column that has any; raises `RowError` if none has."""
    found = [texts(record, name, place) for name in names]
    if not any(found):
        raise RowError(place, f"no caption in {', '.join(map(repr, CAPTIONS))}")
    return next(filter(None, found))
