"""ROUGE-L (Lin 2004) as Google's rouge-score computes it without stemming, 0 to 1."""

import re

from jaxtune.metrics.metric import Prediction, mean, references
from jaxtune.metrics.sequences import longest_common

WORD = re.compile(r"[a-z0-9]+")


def _score(row: Prediction) -> float:
    """Returns the best F1 over references, by the longest common subsequence of words."""
    answer = _words(row.answer)
    return max(_f(answer, _words(each)) for each in references(row))


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def _f(answer: list[str], expected: list[str]) -> float:
    common = longest_common(answer, expected)
    return 2 * common / (len(answer) + len(expected)) if common else 0.0


ROUGE_L = mean("rouge_l", _score)
