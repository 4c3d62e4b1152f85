"""A product becomes its price: prompts and completions as they are."""

from collections.abc import Mapping
from numbers import Number
from typing import Any

from jaxtune.data.errors import RowError, column
from jaxtune.metrics.numbers import WEIGHTED, WRITTEN, first
from jaxtune.tasks import short

COLUMNS = {"prompt": "the product and what to tell of it", "completion": "the price"}
METRICS = (*WRITTEN, *WEIGHTED)
ASK = "prompt"
NEXT = 100


def prefix(record: Mapping[str, Any], place: str) -> str:
    """The prompt, as it is."""
    return _written(record, "prompt", place)


def suffix(record: Mapping[str, Any], place: str) -> str:
    """The completion, as it is."""
    return _written(record, "completion", place)


def references(record: Mapping[str, Any], place: str) -> tuple[str, ...]:
    """The price."""
    price = suffix(record, place).strip()
    if first(price) is None:
        raise RowError(place, f"column 'completion' is {short(price)}; a price was expected")
    return (price,)


def _written(record: Mapping[str, Any], name: str, place: str) -> str:
    value = column(record, name, place)
    if isinstance(value, bool) or not isinstance(value, str | Number):
        raise RowError(place, f"column {name!r} is {short(value)}; a text or a number was expected")
    return str(value)
