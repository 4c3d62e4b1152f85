"""CIDEr-D (Vedantam et al. 2015), which captioning papers report as CIDEr: about 0 to 10.

Words are lowercase without punctuation (`words.caption`, close to the Java tokeniser behind
published figures). An n-gram's weight is its count in a text times its log inverse document
frequency among the references of all rows. A row's score therefore depends on the rows it is
evaluated with; bootstrap intervals keep these weights fixed.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxtune.metrics.metric import Metric, Prediction, average, references
from jaxtune.metrics.sequences import ngrams
from jaxtune.metrics.words import caption

ORDERS = range(1, 5)
SIGMA = 6.0  # words; standard deviation of the penalty on a difference in length


@dataclass(frozen=True)
class Vector:
    """Weights of a text's n-grams of one order, and their Euclidean norm."""

    weights: Mapping[tuple[str, ...], float]
    norm: float


def _statistics(rows: Sequence[Prediction]) -> np.ndarray:
    answers = [caption(row.answer) for row in rows]
    expected = [[caption(each) for each in references(row)] for row in rows]
    rarity = _rarity(expected)
    return np.array([(_score(*each, rarity), 1.0) for each in zip(answers, expected, strict=True)])


def _rarity(expected: Sequence[Sequence[list[str]]]) -> dict[tuple[str, ...], float]:
    """Returns log(rows / rows whose references contain the n-gram) by n-gram.

    The key `()` holds the value of n-grams that no reference contains, log(rows).
    """
    having: Counter = Counter()
    for texts in expected:
        having.update({each for text in texts for order in ORDERS for each in ngrams(text, order)})
    rows = math.log(len(expected))
    return {(): rows} | {each: rows - math.log(count) for each, count in having.items()}


def _score(answer: list[str], expected: Sequence[list[str]], rarity: Mapping) -> float:
    ours = _vectors(answer, rarity)
    found = [_likeness(ours, _vectors(each, rarity)) * _fit(answer, each) for each in expected]
    return 10 * sum(found) / len(found)


def _vectors(text: list[str], rarity: Mapping) -> list[Vector]:
    return [_vector(ngrams(text, order), rarity) for order in ORDERS]


def _vector(counts: Counter, rarity: Mapping) -> Vector:
    weights = {each: count * rarity.get(each, rarity[()]) for each, count in counts.items()}
    return Vector(weights, math.sqrt(sum(weight**2 for weight in weights.values())))


def _likeness(ours: Sequence[Vector], theirs: Sequence[Vector]) -> float:
    """Returns the mean over orders of the cosine, with weights clipped to the reference's."""
    return sum(_cosine(*each) for each in zip(ours, theirs, strict=True)) / len(ours)


def _cosine(ours: Vector, theirs: Vector) -> float:
    shared = ours.weights.keys() & theirs.weights.keys()
    product = sum(min(ours.weights[each], theirs.weights[each]) * theirs.weights[each]
                  for each in shared)  # fmt: skip
    return product / (ours.norm * theirs.norm) if product else 0.0


def _fit(answer: list[str], expected: list[str]) -> float:
    """Returns the Gaussian length penalty: 1 for equal lengths, less for a larger difference."""
    return math.exp(-((len(answer) - len(expected)) ** 2) / (2 * SIGMA**2))


CIDER = Metric("cider", _statistics, average)
