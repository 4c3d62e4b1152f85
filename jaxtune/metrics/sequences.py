"""Counts of n-grams, and overlap of sequences of words or characters."""

from collections import Counter
from collections.abc import Sequence


def ngrams(words: Sequence[str], order: int) -> Counter:
    """Returns the counts of n-grams of `order` words, or of characters if `words` is a string."""
    piece = (lambda run: run) if isinstance(words, str) else tuple
    return Counter(piece(words[at : at + order]) for at in range(len(words) - order + 1))


def matched(counts: Counter, others: Counter) -> int:
    """Returns the size of the multiset intersection of two counts."""
    return sum(min(count, others[each]) for each, count in counts.items() if each in others)


def longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """Returns the length of the longest common subsequence."""
    lengths = [0] * (len(second) + 1)
    for each in first:
        before = 0  # the length for the elements before these two
        for at, other in enumerate(second, 1):
            here = lengths[at]
            lengths[at] = before + 1 if each == other else max(here, lengths[at - 1])
            before = here
    return lengths[-1]
