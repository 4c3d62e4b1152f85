"""BLEU (Papineni et al. 2002) over a corpus, in the two ways it is published."""

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
    """Of each row: its length, its reference's, then by order n-grams that match, and all."""
    return lambda rows: np.array([_row(split, row) for row in rows], np.float64)


def _row(split: Callable[[str], list[str]], row: Prediction) -> list[int]:
    answer = split(row.answer)
    expected = [split(each) for each in references(row)]
    nearest = min((abs(len(each) - len(answer)), len(each)) for each in expected)[1]
    correct = [matched(ngrams(answer, order), _most(expected, order)) for order in ORDERS]
    total = [max(len(answer) - order + 1, 0) for order in ORDERS]
    return [len(answer), nearest, *correct, *total]


def _most(expected: Sequence[Sequence[str]], order: int) -> Counter:
    """How often each n-gram is in the reference that has it most often."""
    most: Counter = Counter()
    for each in expected:
        most |= ngrams(each, order)
    return most


def _smoothed(sums: np.ndarray) -> float:
    """0 to 100; the first order without a match counts half a match, the next a quarter…"""
    correct, total = sums[2 : 2 + LONGEST], sums[2 + LONGEST :]
    missed = correct == 0
    counted = np.where(missed, 0.5 ** np.cumsum(missed), correct)
    return 0.0 if missed.all() or not total.all() else 100 * _score(sums[:2], counted / total)


def _plain(sums: np.ndarray) -> float:
    """0 to 1; an order without a match makes it 0."""
    correct, total = sums[2 : 2 + LONGEST], sums[2 + LONGEST :]
    return _score(sums[:2], correct / total) if correct.all() else 0.0


def _score(lengths: np.ndarray, precisions: np.ndarray) -> float:
    answers, expected = lengths
    return float(np.exp(min(1 - expected / answers, 0) + np.log(precisions).mean()))


# sacreBLEU's: tokeniser 13a, exponential smoothing, the reference nearest in length.
BLEU = Metric("bleu", _statistics(lambda text: words.mteval(text.rstrip())), _smoothed)
# Captioning's BLEU-4: words in lower case without punctuation, no smoothing, 0 to 1. Where an order
# has no match, COCO's code has some 1e-5 of constants that guard its divisions; here that is 0.
BLEU4 = Metric("bleu4", _statistics(words.caption), _plain)
