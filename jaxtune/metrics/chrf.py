"""chrF2 (Popović 2015) as sacreBLEU computes it: n-grams of 1 to 6 characters, beta = 2."""

from collections.abc import Sequence

import numpy as np

from jaxtune.metrics.metric import Metric, Prediction, references
from jaxtune.metrics.sequences import matched, ngrams

ORDERS = range(1, 7)
RECALL = 2**2  # beta squared


def _statistics(rows: Sequence[Prediction]) -> np.ndarray:
    """Returns float64[n, 18]: for each order, the n-grams of answer, reference, and both.

    The reference is the one with which the row scores best.
    """
    return np.array([_row(row) for row in rows], np.float64)


def _row(row: Prediction) -> list[int]:
    answer = _ngrams(row.answer)
    # `max` takes the first of equally good references.
    return max((_counts(answer, _ngrams(each)) for each in references(row)), key=_score)


def _ngrams(text: str) -> list:
    characters = "".join(text.split())
    return [ngrams(characters, order) for order in ORDERS]


def _counts(answer: list, expected: list) -> list[int]:
    """Returns the counts of one row against one reference.

    The answer's n-grams count as 0 at orders for which the reference is too short.
    """
    return [
        number
        for ours, theirs in zip(answer, expected, strict=True)
        for number in (ours.total() if theirs else 0, theirs.total(), matched(ours, theirs))
    ]


def _score(sums: Sequence[float]) -> float:
    """Returns chrF from 0 to 100, over orders at which both answer and reference have n-grams."""
    triples = [sums[at : at + 3] for at in range(0, len(sums), 3)]
    known = [each for each in triples if each[0] > 0 and each[1] > 0]
    if not any(both for _, _, both in known):
        return 0.0
    precision = sum(both / ours for ours, _, both in known) / len(known)
    recall = sum(both / theirs for _, theirs, both in known) / len(known)
    return float(100 * ((1 + RECALL) * precision * recall / (RECALL * precision + recall)))


CHRF = Metric("chrf", _statistics, _score)
