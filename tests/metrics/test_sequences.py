"""Runs and subsequences, counted the long way."""

from itertools import combinations

import pytest

from jaxtune.metrics.sequences import longest_common, matched, ngrams


def longest(first: str, second: str) -> int:
    runs = [{"".join(run) for size in range(len(text) + 1) for run in combinations(text, size)}
            for text in (first, second)]  # fmt: skip
    return max(map(len, runs[0] & runs[1]))


@pytest.mark.parametrize(
    "first, second",
    [("", "ab"), ("abcbdab", "bdcaba"), ("aaaa", "aa"), ("abc", "cba"), ("ab", "xy")],
)
def test_longest_common_subsequence(first, second):
    assert longest_common(first, second) == longest(first, second)
    assert longest_common(second, first) == longest(first, second)


def test_ngrams_of_words_and_of_characters():
    assert ngrams(["a", "b", "a", "b"], 2) == {("a", "b"): 2, ("b", "a"): 1}
    assert ngrams("abab", 2) == {"ab": 2, "ba": 1}
    assert not ngrams("a", 2)


def test_matches_are_counted_as_often_as_where_they_are_rarer():
    assert matched(ngrams("aaab", 1), ngrams("aabb", 1)) == 3
