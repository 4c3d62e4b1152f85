"""Definition of a metric: per-row statistics, and a value computed from their sums."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxtune.display.errors import UserError


@dataclass(frozen=True)
class Prediction:
    """An answer beside its references."""

    answer: str
    references: tuple[str, ...]
    record: Mapping[str, Any]  # the row itself
    place: str = ""  # where the row is, such as `rows.jsonl:3`, for messages
    next: tuple[tuple[str, float], ...] = ()  # the likeliest first tokens and their probabilities


@dataclass(frozen=True)
class Metric:
    """A metric computed from sums of per-row statistics, so that any sample of rows has a value."""

    name: str
    statistics: Callable[[Sequence[Prediction]], np.ndarray]  # float64[n, k] of n predictions
    value: Callable[[np.ndarray], float]  # from sums float64[k]; nan if undefined
    higher: bool = True  # whether higher is better


def mean(name: str, score: Callable[[Prediction], float | None], higher: bool = True) -> Metric:
    """Returns the metric that averages `score` over rows, without those that score None."""

    def statistics(rows: Sequence[Prediction]) -> np.ndarray:
        scores = [score(row) for row in rows]
        return np.array([(0.0, 0.0) if each is None else (each, 1.0) for each in scores])

    return Metric(name, statistics, average, higher)


def average(sums: np.ndarray) -> float:
    """Returns total / count of sums (total, count); nan if the count is 0."""
    total, count = sums
    return float(total / count) if count else math.nan


def references(row: Prediction) -> tuple[str, ...]:
    """Returns a row's references; raises ValueError if it has none."""
    if not row.references:
        raise UserError(f"{named(row)} has no reference to compare its answer with")
    return row.references


def named(row: Prediction) -> str:
    """Returns a name for a row in messages: its place, or the start of its answer."""
    return row.place or f"the row answered {row.answer[:60]!r}"
