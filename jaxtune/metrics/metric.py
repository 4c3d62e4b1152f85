"""What a metric is: what each row adds, and the figure that comes from the sums."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Prediction:
    """A row that was answered."""

    answer: str
    references: tuple[str, ...]
    record: Mapping[str, Any]  # the row itself
    place: str = ""  # where the row stands, for messages
    next: tuple[tuple[str, float], ...] = ()  # the likeliest first tokens and their probabilities


@dataclass(frozen=True)
class Metric:
    """A figure over rows that comes from sums over them, so that any sample of rows has one."""

    name: str
    statistics: Callable[[Sequence[Prediction]], np.ndarray]  # float64[n, k]: what each row adds
    value: Callable[[np.ndarray], float]  # of the sums float64[k]; nan where there is none
    higher: bool = True  # is better


def mean(name: str, score: Callable[[Prediction], float | None], higher: bool = True) -> Metric:
    """The mean of a score that each row has alone; a row with None does not count."""

    def statistics(rows: Sequence[Prediction]) -> np.ndarray:
        scores = [score(row) for row in rows]
        return np.array([(0.0, 0.0) if each is None else (each, 1.0) for each in scores])

    return Metric(name, statistics, average, higher)


def average(sums: np.ndarray) -> float:
    """A total over the number of those it is of."""
    total, count = sums
    return float(total / count) if count else math.nan


def references(row: Prediction) -> tuple[str, ...]:
    """A row's references; a row without is a ValueError."""
    if not row.references:
        raise ValueError(f"{named(row)} has no reference to compare its answer with")
    return row.references


def named(row: Prediction) -> str:
    """A row, as a message has it."""
    return row.place or f"the row answered {row.answer[:60]!r}"
