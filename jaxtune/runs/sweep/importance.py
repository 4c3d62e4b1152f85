"""Statistics of finished trials: the importance of each key, and the spread over seeds."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

PARTS = 4  # groups of equal size that the numbers of a range are cut into
SEED = "seed"
LIKELY = 0.95  # coverage of intervals
# Quantiles of Student's t distribution at (1 + LIKELY) / 2, by degrees of freedom; 1.96 above them.
STUDENT = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)

Result = tuple[Mapping[str, Any], float]  # overrides of a trial, and its metric


def importances(results: Sequence[Result], ranged: Sequence[str]) -> dict[str, float]:
    """Returns the share of the metric's variance that each key explains by itself, highest first.

    It is ε² of a one-way analysis of variance, which corrects for the number of groups and is 0
    where a key explains no more than chance would. Ranges are cut into quarters. Effects of keys
    together are not in it, so the shares need not add up to 1.

    Args:
      results: Overrides and metric of the complete trials.
      ranged: Keys whose values are ranges.
    """
    keys = dict.fromkeys(key for overrides, _ in results for key in overrides)
    found = {key: _explained(results, key, key in ranged) for key in keys}
    return dict(sorted(found.items(), key=lambda each: -each[1]))


def _explained(results: Sequence[Result], key: str, ranged: bool) -> float:
    with_key = [(each[key], value) for each, value in results if key in each]
    groups = _quarters(with_key) if ranged else _by_value(with_key)
    values = [value for group in groups for value in group]
    between, within = len(groups) - 1, len(values) - len(groups)
    if between < 1 or within < 1:
        return 0.0
    mean = statistics.fmean(values)
    total = sum((value - mean) ** 2 for value in values)
    inside = sum((value - statistics.fmean(group)) ** 2 for group in groups for value in group)
    if not total:
        return 0.0
    return max(0.0, (total - inside - between * inside / within) / total)


def _by_value(given: Sequence[tuple[Any, float]]) -> list[list[float]]:
    groups: dict[str, list[float]] = {}
    for value, metric in given:
        groups.setdefault(json.dumps(value), []).append(metric)
    return list(groups.values())


def _quarters(given: Sequence[tuple[Any, float]]) -> list[list[float]]:
    ordered = [metric for _, metric in sorted(given)]
    parts = min(PARTS, len(ordered) // 2)
    cuts = [round(part * len(ordered) / parts) for part in range(parts + 1)] if parts else []
    return [ordered[start:end] for start, end in pairwise(cuts)]


def over_seeds(
    results: Sequence[Result],
) -> list[tuple[dict[str, Any], list[float], tuple[float, float]]]:
    """Returns, for each setting with several seeds, its overrides, metrics and their interval.

    The interval is that of the mean at 95 %, by Student's t distribution.
    """
    groups: dict[str, list[float]] = {}
    for overrides, value in results:
        if SEED in overrides:
            rest = {key: each for key, each in overrides.items() if key != SEED}
            groups.setdefault(json.dumps(rest), []).append(value)
    return [
        (json.loads(rest), values, _interval(values))
        for rest, values in groups.items()
        if len(values) > 1
    ]


def _interval(values: Sequence[float]) -> tuple[float, float]:
    mean, count = statistics.fmean(values), len(values)
    quantile = STUDENT[count - 2] if count - 2 < len(STUDENT) else 1.96
    half = quantile * statistics.stdev(values) / math.sqrt(count)
    return mean - half, mean + half
