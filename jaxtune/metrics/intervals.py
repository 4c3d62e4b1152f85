"""Metric values over a set of rows, with bootstrap confidence intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from jaxtune.display.errors import UserError
from jaxtune.metrics.metric import Metric, Prediction, named

DRAWN = 1 << 22  # rows drawn at a time, to bound the memory used


@dataclass(frozen=True)
class Figure:
    """A metric's value and the bounds of its interval; None where they are undefined."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference:
    """Figures of two sets of answers to the same rows, and of the second minus the first."""

    first: Figure
    second: Figure
    difference: Figure
    overlap: bool  # whether the intervals of `first` and `second` overlap


def summarise(
    metrics: Sequence[Metric],
    rows: Sequence[Prediction],
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Figure]:
    """Returns each metric's value over all rows, with a percentile bootstrap interval.

    Args:
      metrics: Metrics with distinct names.
      rows: Answered rows, at least one.
      samples: Number of bootstrap resamples.
      seed: Seed of the resampling.
      level: Confidence level of the interval, between 0 and 1.

    Returns:
      The figures by metric name.
    """
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
    """Compares two sets of answers to the same rows by a paired bootstrap.

    Both sets are evaluated on the same resampled rows, so the interval of their difference is
    that of a paired comparison.

    Args:
      metrics: Metrics with distinct names.
      first: Answers to compare against, such as those of the base.
      second: Answers to the same rows in the same order.
      samples: Number of bootstrap resamples.
      seed: Seed of the resampling.
      level: Confidence level of the intervals, between 0 and 1.

    Returns:
      The differences, `second` minus `first`, by metric name.
    """
    _check_pairs(first, second)
    statistics = _statistics(metrics, first) + _statistics(metrics, second)
    sums = _resampled(statistics, len(first), samples, seed)
    figures = _figures([*metrics, *metrics], statistics, sums)
    halves = zip(metrics, figures[: len(metrics)], figures[len(metrics) :], strict=True)
    return {metric.name: _difference(one, other, level) for metric, one, other in halves}


def per_row(metrics: Sequence[Metric], rows: Sequence[Prediction]) -> dict[str, list[float | None]]:
    """Returns the value of each metric on every single row, None where it is undefined."""
    return {
        metric.name: [_defined(metric.value(row)) for row in statistics]
        for metric, statistics in zip(metrics, _statistics(metrics, rows), strict=True)
    }


def _statistics(metrics: Sequence[Metric], rows: Sequence[Prediction]) -> list[np.ndarray]:
    """Returns the statistics of every row, float64[n, k] for each metric."""
    if not rows:
        raise UserError("there are no answers to score; expected at least one row")
    names = [metric.name for metric in metrics]
    if len(set(names)) < len(names):
        raise UserError(f"expected metrics with distinct names; found {', '.join(names)}")
    return [np.asarray(metric.statistics(rows), np.float64) for metric in metrics]


def _resampled(
    statistics: Sequence[np.ndarray], rows: int, samples: int, seed: int
) -> list[np.ndarray]:
    """Returns sums over `samples` resamples of the rows, float64[samples, k] for each metric."""
    if samples < 1:
        raise UserError(f"an interval needs at least one resample; found samples={samples}")
    joined = np.concatenate([np.empty((rows, 0)), *statistics], axis=1)
    edges = np.cumsum([0, *(each.shape[1] for each in statistics)])
    draw = np.random.default_rng(seed)
    most = max(DRAWN // rows, 1)
    parts = [min(most, samples - start) for start in range(0, samples, most)]
    sums = np.concatenate([_counts(draw, part, rows) @ joined for part in parts])
    return [sums[:, start:end] for start, end in pairwise(edges)]


def _counts(draw: np.random.Generator, samples: int, rows: int) -> np.ndarray:
    """Returns multinomial counts of every row in each resample, float64[samples, rows]."""
    drawn = draw.integers(rows, size=(samples, rows)) + rows * np.arange(samples)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=samples * rows)
    # Floats, because NumPy multiplies integer matrices without BLAS.
    return counts.reshape(samples, rows).astype(np.float64)


def _figures(
    metrics: Sequence[Metric], statistics: Sequence[np.ndarray], sums: Sequence[np.ndarray]
) -> list[tuple[float, np.ndarray]]:
    """Returns for each metric the value over all rows, and float64[samples] over resamples."""
    return [
        (metric.value(rows.sum(0)), np.array([metric.value(each) for each in resampled]))
        for metric, rows, resampled in zip(metrics, statistics, sums, strict=True)
    ]


def _figure(value: float, resampled: np.ndarray, level: float) -> Figure:
    if not 0 < level < 1:
        raise UserError(f"expected a confidence level between 0 and 1, such as 0.95; found {level}")
    # The value is nan on a resample that holds none of the rows the metric counts.
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
        raise UserError(
            f"expected two sets of answers to the same rows; found {len(first)} and "
            f"{len(second)} rows"
        )
    for one, other in zip(first, second, strict=True):
        if one.references != other.references:
            raise UserError(
                f"expected two sets of answers to the same rows in the same order; found "
                f"{named(one)} beside {named(other)}, whose references differ"
            )
