"""Corpus BLEU (Papineni et al. 2002), as translation and as captioning papers report it."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from jaxtune.metrics import words
from jaxtune.metrics.metric import Metric, Prediction, references
from jaxtune.metrics.sequences import matched, ngrams

ORDERS = range(1, 5)
LONGEST = len(ORDERS)


def _statistics(
    split: Callable[[str], list[str]],
) -> Callable[[Sequence[Prediction]], np.ndarray]:
    """Returns a function from rows to float64[n, 10].

    The columns are the answer's length in words, the length of the reference nearest to it, then
    the matching n-grams and all n-grams of the answer, each by order from 1 to 4.
    """
    return lambda rows: np.array([_row(split, row) for row in rows], np.float64)


def _row(split: Callable[[str], list[str]], row: Prediction) -> list[int]:
    answer = split(row.answer)
    expected = [split(each) for each in references(row)]
    nearest = min((abs(len(each) - len(answer)), len(each)) for each in expected)[1]
    correct = [matched(ngrams(answer, order), _most(expected, order)) for order in ORDERS]
    total = [max(len(answer) - order + 1, 0) for order in ORDERS]
    return [len(answer), nearest, *correct, *total]


def _most(expected: Sequence[Sequence[str]], order: int) -> Counter:
    """Returns the largest count of each n-gram in any one reference."""
    most: Counter = Counter()
    for each in expected:
        most |= ngrams(each, order)
    return most


def _smoothed(sums: np.ndarray) -> float:
    """Returns BLEU from 0 to 100, with exponential smoothing.

    The first order without a match counts as half a match, the next as a quarter, and so on.
    """
    correct, total = sums[2 : 2 + LONGEST], sums[2 + LONGEST :]
    missed = correct == 0
    counted = np.where(missed, 0.5 ** np.cumsum(missed), correct)
    return 0.0 if missed.all() or not total.all() else 100 * _score(sums[:2], counted / total)


def _plain(sums: np.ndarray) -> float:
    """Returns BLEU from 0 to 1, without smoothing: 0 if an order has no match."""
    correct, total = sums[2 : 2 + LONGEST], sums[2 + LONGEST :]
    return _score(sums[:2], correct / total) if correct.all() else 0.0


def _score(lengths: np.ndarray, precisions: np.ndarray) -> float:
    answers, expected = lengths
    return float(np.exp(min(1 - expected / answers, 0) + np.log(precisions).mean()))


# BLEU as in sacreBLEU: tokeniser 13a, exponential smoothing, the reference nearest in length.
BLEU = Metric("bleu", _statistics(lambda text: words.mteval(text.rstrip())), _smoothed)
# BLEU-4 as in captioning: lowercase words without punctuation, no smoothing, 0 to 1. Where an order
# has no match this is 0, while constants that guard COCO's divisions make its value about 1e-5.
BLEU4 = Metric("bleu4", _statistics(words.caption), _plain)
