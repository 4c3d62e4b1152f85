"""What sequences of words or characters share."""

from collections import Counter
from collections.abc import Sequence


def ngrams(words: Sequence[str], order: int) -> Counter:
    """How often each run of `order` words is there; of a text, each run of characters."""
    piece = (lambda run: run) if isinstance(words, str) else tuple
    return Counter(piece(words[at : at + order]) for at in range(len(words) - order + 1))


def matched(counts: Counter, others: Counter) -> int:
    """How many are in both, each as often as where it is rarer."""
    return sum(min(count, others[each]) for each, count in counts.items() if each in others)


def longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    lengths = [0] * (len(second) + 1)
    for each in first:
        before = 0  # of what comes earlier in both
        for at, other in enumerate(second, 1):
            here = lengths[at]
            lengths[at] = before + 1 if each == other else max(here, lengths[at - 1])
            before = here
    return lengths[-1]
