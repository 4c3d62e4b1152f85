"""PARENT (Dhingra et al. 2019): n-gram overlap of an answer with references and with a table.

For an answer G, a reference R and a table T of K values v, where w(g) is the share of the words of
an n-gram g that occur in the values, and #(g) is the count of g in a text, the paper defines

    precision of order n = sum_g [p + (1 - p) w(g)] #G(g) / sum_g #G(g),  p = min(1, #R(g) / #G(g))
    recall of R, order n = sum_g min(#G(g), #R(g)) w(g) / sum_g #R(g) w(g)
    recall of T          = 1/K sum_v LCS(v, G) / |v|
    recall               = (geometric mean of recalls of R)^(1 - lambda) (recall of T)^lambda

and F as the harmonic mean of recall and the geometric mean of the precisions. Zeros are handled as
in the authors' released code. As there, a row's score is the best F over its references, and the
metric is the mean over rows, 0 to 1.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxtune.metrics.metric import Metric, Prediction, mean, references
from jaxtune.metrics.sequences import longest_common, ngrams
from jaxtune.metrics.words import mteval

ORDERS = range(1, 5)
SMALL = 1e-5  # replaces a recall of 0, and a precision of 0 at orders above 1
GUARD = 1e-8  # keeps the divisor in F above 0

Table = list[tuple[str, str]]  # (attribute, value)
Values = list[list[str]]  # the words of each value


def parent(
    table_of: Callable[[Mapping[str, Any]], Table],
    weight: float | None = 0.5,
    told_of: Callable[[Mapping[str, Any]], Table] | None = None,
) -> Metric:
    """Returns the metric PARENT.

    Args:
      table_of: Returns a row's whole table, from which an answer may take words.
      weight: Lambda. None, as in ToTTo's evaluation, takes the share of the values of `told_of`
        that the reference omits.
      told_of: Returns the part of the table that an answer should mention; by default all of it.

    Returns:
      The mean over rows, each scored against its best reference.
    """

    def score(row: Prediction) -> float:
        known = {word for words in _values(table_of(row.record)) for word in words}
        wanted = _values((told_of or table_of)(row.record))
        answer = _words(row.answer)
        return max(_f(answer, _words(each), known, wanted, weight) for each in references(row))

    return mean("parent", score)


def _words(text: str) -> list[str]:
    return mteval(text.strip().lower())


def _values(table: Table) -> Values:
    return [words for _, value in table if (words := _words(value))]


def _f(
    answer: list[str], expected: list[str], known: set[str], wanted: Values, weight: float | None
) -> float:
    precision = _geometric([_precision(answer, expected, known, order) for order in ORDERS], 0.0)
    recalls = [_recall(answer, expected, known, order) for order in ORDERS]
    share = 1 - _mentioned(expected, wanted) if weight is None else weight
    table = _mentioned(answer, wanted) or SMALL
    recall = _geometric(recalls, SMALL) ** (1 - share) * table**share
    return 2 * precision * recall / (precision + recall + GUARD)


def _precision(answer: list[str], expected: list[str], known: set[str], order: int) -> float:
    counts, others = ngrams(answer, order), ngrams(expected, order)
    right = sum(
        min(count, others[each]) + max(count - others[each], 0) * _entailed(each, known)
        for each, count in counts.items()
    )
    return right / counts.total() if counts else 0.0


def _recall(answer: list[str], expected: list[str], known: set[str], order: int) -> float:
    """Returns the recall of one order; 1 if no n-gram of the reference has a word of the table."""
    counts, others = ngrams(answer, order), ngrams(expected, order)
    weights = Counter({each: count * _entailed(each, known) for each, count in others.items()})
    right = sum(
        weight * min(1, counts[each] / others[each]) for each, weight in weights.items() if weight
    )
    return right / weights.total() if weights.total() else 1.0


def _entailed(ngram: Iterable[str], known: set[str]) -> float:
    found = [word in known for word in ngram]
    return sum(found) / len(found)


def _mentioned(text: list[str], wanted: Values) -> float:
    """Returns the mean share of each value's words found in a text; 1 if there are no values."""
    shares = [longest_common(value, text) / len(value) for value in wanted]
    return sum(shares) / len(shares) if shares else 1.0


def _geometric(values: list[float], without: float) -> float:
    """Returns the geometric mean over orders, or `without` if the first order is 0."""
    if not values[0]:
        return without
    return math.exp(sum(math.log(each or SMALL) for each in values) / len(values))
