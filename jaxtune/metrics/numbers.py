"""Errors of numeric answers, such as prices.

An answer without a number counts as a guess of 0; the metric `answered` is the share of answers
that contain one.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from jaxtune.display.errors import UserError
from jaxtune.metrics.metric import Metric, Prediction, average, mean, named, references

NUMBER = re.compile(
    r"(?:(?<!\w)-)?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
)
SEVERAL = re.compile("[0-9]{2}")
# A guess is a hit if its error is below either bound, the usual rule of models trained on prices.
NEAR = 40.0  # dollars
SHARE = 0.2  # of the true price

Guess = Callable[[Prediction], float | None]


def first(text: str) -> float | None:
    """Returns the first number of a text (`1,299.00` is one), or None if none or not finite."""
    found = NUMBER.search(text)
    number = float(found[0].replace(",", "")) if found else math.inf
    return number if math.isfinite(number) else None


def written(row: Prediction) -> float | None:
    """Returns the first number of the answer, or None if it has none."""
    return first(row.answer)


def weighted(row: Prediction) -> float | None:
    """Returns the probability-weighted mean of the numbers among the likeliest first tokens."""
    numbers = [(first(text), each) for text, each in row.next if NUMBER.fullmatch(text.strip())]
    known = [(number, each) for number, each in numbers if number is not None and each > 0]
    total = sum(each for _, each in known)
    return sum(number * each for number, each in known) / total if total else None


def by_digits(rows: Sequence[Prediction]) -> bool:
    """Returns whether the tokenizer writes numbers digit by digit, judging by first tokens.

    The first token of a number then says little about its value.
    """
    likely = {text.strip() for row in rows for text, _ in row.next}
    numerals = [text for text in likely if NUMBER.fullmatch(text)]
    wide = any(truth(row) >= 10 for row in rows)
    return bool(numerals) and wide and not any(map(SEVERAL.search, numerals))


def truth(row: Prediction) -> float:
    """Returns the first number of the first reference."""
    number = first(references(row)[0])
    if number is None:
        raise UserError(
            f"{named(row)} has the reference {row.references[0][:60]!r}, which contains no number"
        )
    return number


def metrics(guess: Guess = written, prefix: str = "") -> tuple[Metric, ...]:
    """Returns four metrics: mean absolute error, RMS log error, hit rate, and share answered.

    `guess` takes a number from a prediction; `prefix` begins the names of the metrics.
    """

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
    """Returns the root mean squared difference of log(1 + x), with negative x clipped to 0."""

    def statistics(rows: Sequence[Prediction]) -> np.ndarray:
        pairs = np.array([(guessed(row), truth(row)) for row in rows])
        logs = np.log1p(np.maximum(pairs, 0))
        return np.stack([(logs[:, 0] - logs[:, 1]) ** 2, np.ones(len(rows))], axis=1)

    return Metric(name, statistics, lambda sums: math.sqrt(average(sums)), higher=False)


def _of_whole_numbers(metric: Metric) -> Metric:
    """Returns the metric, made undefined where the tokenizer writes numbers digit by digit."""

    def statistics(rows: Sequence[Prediction]) -> np.ndarray:
        found = metric.statistics(rows)
        return np.zeros_like(found) if by_digits(rows) else found

    return replace(metric, statistics=statistics)


WRITTEN = metrics()
WEIGHTED = tuple(map(_of_whole_numbers, metrics(weighted, "weighted_")))
