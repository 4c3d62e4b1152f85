"""Figures over rows, with what they could have been on other rows like these: the bootstrap."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from jaxtune.metrics.metric import Metric, Prediction, named

DRAWN = 1 << 22  # rows drawn at a time, which bounds the memory


@dataclass(frozen=True)
class Figure:
    """A value and its interval; None where no row has one."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference:
    """Two figures over the same rows, and the second less the first."""

    first: Figure
    second: Figure
    difference: Figure
    overlap: bool  # of the two figures' own intervals


def summarise(
    metrics: Sequence[Metric],
    rows: Sequence[Prediction],
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Figure]:
    """Each metric's value over all rows, and its percentile interval over resampled rows."""
    statistics = _statistics(metrics, rows)
    figures = _figures(metrics, statistics, _resampled(statistics, len(rows), samples, seed))
    return {
        metric.name: _figure(*each, level) for metric, each in zip(metrics, figures, strict=True)
    }


def paired(
    metrics: Sequence[Metric],
    first: Sequence[Prediction],
    second: Sequence[Prediction],
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Difference]:
    """What the second answers to the same rows gain, each time on the same resampled rows."""
    _check_pairs(first, second)
    statistics = _statistics(metrics, first) + _statistics(metrics, second)
    sums = _resampled(statistics, len(first), samples, seed)
    figures = _figures([*metrics, *metrics], statistics, sums)
    halves = zip(metrics, figures[: len(metrics)], figures[len(metrics) :], strict=True)
    return {metric.name: _difference(one, other, level) for metric, one, other in halves}


def per_row(metrics: Sequence[Metric], rows: Sequence[Prediction]) -> dict[str, list[float | None]]:
    """Each metric's value for each row alone, None where it has none."""
    return {
        metric.name: [_defined(metric.value(row)) for row in statistics]
        for metric, statistics in zip(metrics, _statistics(metrics, rows), strict=True)
    }


def _statistics(metrics: Sequence[Metric], rows: Sequence[Prediction]) -> list[np.ndarray]:
    """What each row adds to each metric, float64[n, k]."""
    if not rows:
        raise ValueError("no row was answered, so there is nothing to measure; give at least one")
    names = [metric.name for metric in metrics]
    if len(set(names)) < len(names):
        raise ValueError(f"metrics have names of their own; found {', '.join(names)}")
    return [np.asarray(metric.statistics(rows), np.float64) for metric in metrics]


def _resampled(
    statistics: Sequence[np.ndarray], rows: int, samples: int, seed: int
) -> list[np.ndarray]:
    """The sums over `samples` resamples of the rows, float64[samples, k] for each metric."""
    if samples < 1:
        raise ValueError(f"an interval takes at least one sample; found samples={samples}")
    joined = np.concatenate([np.empty((rows, 0)), *statistics], axis=1)
    edges = np.cumsum([0, *(each.shape[1] for each in statistics)])
    draw = np.random.default_rng(seed)
    most = max(DRAWN // rows, 1)
    parts = [min(most, samples - start) for start in range(0, samples, most)]
    sums = np.concatenate([_counts(draw, part, rows) @ joined for part in parts])
    return [sums[:, start:end] for start, end in pairwise(edges)]


def _counts(draw: np.random.Generator, samples: int, rows: int) -> np.ndarray:
    """How often each row is in each resample, multinomial, float64[samples, rows]."""
    drawn = draw.integers(rows, size=(samples, rows)) + rows * np.arange(samples)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=samples * rows)
    # As floats: products of integers do not go through BLAS.
    return counts.reshape(samples, rows).astype(np.float64)


def _figures(
    metrics: Sequence[Metric], statistics: Sequence[np.ndarray], sums: Sequence[np.ndarray]
) -> list[tuple[float, np.ndarray]]:
    """For each metric its value over all rows, and float64[samples] of those over resamples."""
    return [
        (metric.value(rows.sum(0)), np.array([metric.value(each) for each in resampled]))
        for metric, rows, resampled in zip(metrics, statistics, sums, strict=True)
    ]


def _figure(value: float, resampled: np.ndarray, level: float) -> Figure:
    if not 0 < level < 1:
        raise ValueError(f"an interval's level is between 0 and 1, such as 0.95; found {level}")
    # A resample may hold none of the few rows that count.
    defined = resampled[~np.isnan(resampled)]
    if math.isnan(value) or not defined.size:
        return Figure(_defined(value), None, None)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Figure(float(value), float(low), float(high))


def _difference(
    first: tuple[float, np.ndarray], second: tuple[float, np.ndarray], level: float
) -> Difference:
    one, other = _figure(*first, level), _figure(*second, level)
    change = _figure(second[0] - first[0], second[1] - first[1], level)
    known = None not in (one.low, other.low)
    return Difference(one, other, change, known and one.low <= other.high and other.low <= one.high)


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _check_pairs(first: Sequence[Prediction], second: Sequence[Prediction]) -> None:
    if len(first) != len(second):
        raise ValueError(
            f"two sets of answers to the same rows were expected; found {len(first)} and "
            f"{len(second)} rows"
        )
    for one, other in zip(first, second, strict=True):
        if one.references != other.references:
            raise ValueError(
                f"two sets of answers to the same rows, in one order, were expected; found "
                f"{named(one)} beside {named(other)}, whose references differ"
            )
