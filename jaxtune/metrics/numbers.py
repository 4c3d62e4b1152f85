"""How near numbers come: for prices.

An answer without a number is a guess of 0, and `answered` says how many have one.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from jaxtune.metrics.metric import Metric, Prediction, average, mean, named, references

NUMBER = re.compile(
    r"(?:(?<!\w)-)?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
)
SEVERAL = re.compile("[0-9]{2}")
# What is near enough to a price, by the rule that those who train on prices go by.
NEAR = 40.0  # dollars, or
SHARE = 0.2  # of the truth

Guess = Callable[[Prediction], float | None]


def first(text: str) -> float | None:
    """The first number of a text, `1,299.00` being one; None without, and where it is endless."""
    found = NUMBER.search(text)
    number = float(found[0].replace(",", "")) if found else math.inf
    return number if math.isfinite(number) else None


def written(row: Prediction) -> float | None:
    """The first number of the answer."""
    return first(row.answer)


def weighted(row: Prediction) -> float | None:
    """The mean of the likeliest first tokens that are numbers, by their probabilities."""
    numbers = [(first(text), each) for text, each in row.next if NUMBER.fullmatch(text.strip())]
    known = [(number, each) for number, each in numbers if number is not None and each > 0]
    total = sum(each for _, each in known)
    return sum(number * each for number, each in known) / total if total else None


def by_digits(rows: Sequence[Prediction]) -> bool:
    """Whether tokens are single digits, so that the first one of a number says little of it."""
    likely = {text.strip() for row in rows for text, _ in row.next}
    numerals = [text for text in likely if NUMBER.fullmatch(text)]
    wide = any(truth(row) >= 10 for row in rows)
    return bool(numerals) and wide and not any(map(SEVERAL.search, numerals))


def truth(row: Prediction) -> float:
    """The first number of the first reference."""
    number = first(references(row)[0])
    if number is None:
        raise ValueError(
            f"{named(row)} has the reference {row.references[0][:60]!r}, which holds no number"
        )
    return number


def metrics(guess: Guess = written, prefix: str = "") -> tuple[Metric, ...]:
    """Mean absolute error, root mean squared logarithmic error, hits, and how many answered."""

    def guessed(row: Prediction) -> float:
        return guess(row) or 0.0

    return (
        mean(f"{prefix}mae", lambda row: abs(guessed(row) - truth(row)), higher=False),
        _rmsle(f"{prefix}rmsle", guessed),
        mean(f"{prefix}hit_rate", lambda row: float(_hit(guessed(row), truth(row)))),
        mean(f"{prefix}answered", lambda row: float(guess(row) is not None)),
    )


def _hit(guess: float, truth: float) -> bool:
    error = abs(guess - truth)
    return error < NEAR or (truth > 0 and error / truth < SHARE)


def _rmsle(name: str, guessed: Callable[[Prediction], float]) -> Metric:
    """The root of the mean squared difference of log(1 + x), what is below 0 taken as 0."""

    def statistics(rows: Sequence[Prediction]) -> np.ndarray:
        pairs = np.array([(guessed(row), truth(row)) for row in rows])
        logs = np.log1p(np.maximum(pairs, 0))
        return np.stack([(logs[:, 0] - logs[:, 1]) ** 2, np.ones(len(rows))], axis=1)

    return Metric(name, statistics, lambda sums: math.sqrt(average(sums)), higher=False)


def _of_whole_numbers(metric: Metric) -> Metric:
    """A metric that no row has where numbers come a digit at a time."""

    def statistics(rows: Sequence[Prediction]) -> np.ndarray:
        found = metric.statistics(rows)
        return np.zeros_like(found) if by_digits(rows) else found

    return replace(metric, statistics=statistics)


WRITTEN = metrics()
WEIGHTED = tuple(map(_of_whole_numbers, metrics(weighted, "weighted_")))
