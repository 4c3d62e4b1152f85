"""chrF2 (Popović 2015) as sacreBLEU computes it: runs of 1 to 6 characters, recall twice."""

from collections.abc import Sequence

import numpy as np

from jaxtune.metrics.metric import Metric, Prediction, references
from jaxtune.metrics.sequences import matched, ngrams

ORDERS = range(1, 7)
RECALL = 2**2  # beta squared


def _statistics(rows: Sequence[Prediction]) -> np.ndarray:
    """Of each row, against its best reference, by order: n-grams of answer, reference, both."""
    return np.array([_row(row) for row in rows], np.float64)


def _row(row: Prediction) -> list[int]:
    answer = _ngrams(row.answer)
    # Of equals the first, as `max` has it.
    return max((_counts(answer, _ngrams(each)) for each in references(row)), key=_score)


def _ngrams(text: str) -> list:
    characters = "".join(text.split())
    return [ngrams(characters, order) for order in ORDERS]


def _counts(answer: list, expected: list) -> list[int]:
    """The answer's n-grams do not count where the reference is too short to have any."""
    return [
        number
        for ours, theirs in zip(answer, expected, strict=True)
        for number in (ours.total() if theirs else 0, theirs.total(), matched(ours, theirs))
    ]


def _score(sums: Sequence[float]) -> float:
    """0 to 100, over the orders that answer and reference are long enough for."""
    triples = [sums[at : at + 3] for at in range(0, len(sums), 3)]
    known = [each for each in triples if each[0] > 0 and each[1] > 0]
    if not any(both for _, _, both in known):
        return 0.0
    precision = sum(both / ours for ours, _, both in known) / len(known)
    recall = sum(both / theirs for _, theirs, both in known) / len(known)
    return float(100 * ((1 + RECALL) * precision * recall / (RECALL * precision + recall)))


CHRF = Metric("chrf", _statistics, _score)
