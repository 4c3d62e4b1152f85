"""PARENT beside the paper's formulas, written out one n-gram at a time."""

import math
import random

import pytest

from jaxtune.metrics import parent, per_row, summarise
from tests.metrics import made

SMALL, GUARD = 1e-5, 1e-8  # of the authors' released code
WORDS = ["the", "old", "cat", "sat", "on", "red", "mats", "in", "rome", "1999"]


def runs(words, order):
    return [tuple(words[at : at + order]) for at in range(len(words) - order + 1)]


def common(first, second):
    """The longest common subsequence, by its recursion."""
    if not first or not second:
        return 0
    if first[0] == second[0]:
        return 1 + common(first[1:], second[1:])
    return max(common(first[1:], second), common(first, second[1:]))


def table_recall(text, values):
    return sum(common(value, text) / len(value) for value in values) / len(values)


def precision(answer, reference, entailed, order):
    """Each n-gram of the answer: in the reference with p, else as entailed."""
    ours, theirs = runs(answer, order), runs(reference, order)
    p = [min(1, theirs.count(run) / ours.count(run)) for run in ours]
    right = [each + (1 - each) * entailed(run) for each, run in zip(p, ours, strict=True)]
    return sum(right) / len(ours) if ours else 0.0


def recall(answer, reference, entailed, order):
    """Each n-gram of the reference that the table entails: how much of it the answer has."""
    ours, theirs = runs(answer, order), runs(reference, order)
    whole = sum(entailed(run) for run in theirs)
    found = sum(entailed(run) * min(1, ours.count(run) / theirs.count(run)) for run in theirs)
    return found / whole if whole else 1.0


def score(answer, reference, values, weight):
    known = {word for value in values for word in value}

    def entailed(run):
        return sum(word in known for word in run) / len(run)

    def mean(figure, nothing):
        by_order = [figure(answer, reference, entailed, order) for order in (1, 2, 3, 4)]
        return math.prod(each or SMALL for each in by_order) ** 0.25 if by_order[0] else nothing

    share = 1 - table_recall(reference, values) if weight is None else weight
    told = table_recall(answer, values) or SMALL
    both = mean(recall, SMALL) ** (1 - share) * told**share
    exact = mean(precision, 0.0)
    return 2 * exact * both / (exact + both + GUARD)


def cases(seed, count=60):
    draw = random.Random(seed)

    def text(least, most):
        return " ".join(draw.choices(WORDS, k=draw.randint(least, most)))

    return [
        made.answered(
            text(0, 8),
            tuple(text(0, 8) for _ in range(draw.choice([1, 3]))),
            record={"cells": [("header", text(1, 3)) for _ in range(draw.randint(1, 4))]},
        )
        for _ in range(count)
    ]


def cells(record):
    return record["cells"]


@pytest.mark.parametrize("weight", [0.5, 0.2, None])
def test_parent_is_the_papers(weight):
    rows = cases(0)
    expected = [
        max(
            score(
                row.answer.split(), each.split(), [v.split() for _, v in cells(row.record)], weight
            )
            for each in row.references
        )
        for row in rows
    ]
    metric = parent.parent(cells, weight)
    # Sums in another order.
    assert per_row([metric], rows)["parent"] == pytest.approx(expected, abs=1e-12)
    whole = summarise([metric], rows, samples=1)["parent"].value
    assert whole == pytest.approx(sum(expected) / len(rows), abs=1e-12)
    assert len({round(each, 9) for each in expected}) > 20


def test_a_worked_example():
    """Of `cat sat down`, cat is told of by the table, sat by the reference alone, down by none."""
    row = made.answered("cat sat down", ("cat sat",), record={"cells": [("who", "cat Tom")]})
    # Two words of three, a pair of two, the third of a run of three that is entailed; none of four.
    exact = (2 / 3 * 1 / 2 * 1 / 3 * SMALL) ** 0.25
    # All of the reference that is entailed, in part or whole, is found; half of the value is.
    both = 1.0**0.5 * (1 / 2) ** 0.5
    expected = 2 * exact * both / (exact + both + GUARD)
    assert per_row([parent.parent(cells)], [row])["parent"] == pytest.approx([expected], rel=1e-12)


def test_what_ought_to_be_told_may_be_a_part():
    row = made.answered(
        "cat sat in rome", ("cat sat in rome",), record={"cells": [("a", "cat"), ("b", "1999")]}
    )
    whole, part = parent.parent(cells), parent.parent(cells, told_of=lambda found: cells(found)[:1])
    # All is right; of the values told are one of two, and one of one.
    assert per_row([whole], [row])["parent"] == pytest.approx([2 * 0.5**0.5 / (1 + 0.5**0.5)], 1e-6)
    assert per_row([part], [row])["parent"] == pytest.approx([1], 1e-6)


def test_a_table_without_values_leaves_nothing_untold():
    row = made.answered("cat sat on mats", ("cat sat on mats",), record={"cells": [("a", " ")]})
    assert per_row([parent.parent(cells)], [row])["parent"] == pytest.approx([1], 1e-6)
