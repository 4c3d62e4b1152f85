"""Prices: what is read as a number, and how far it is off."""

import math

import numpy as np
import pytest

from jaxtune.metrics import numbers, per_row, summarise
from tests.metrics import made


@pytest.mark.parametrize(
    "text, expected",
    [
        ("1,299.00", 1299.0),
        ("Price is $1,299,000.50.", 1299000.5),
        ("about 30 or 40", 30.0),
        (".5", 0.5),
        ("7.", 7.0),
        ("-3.5", -3.5),
        ("5-10", 5.0),
        ("1,2", 1.0),
        ("1,2999", 1.0),
        ("USD12", 12.0),
        ("", None),
        ("no idea", None),
        ("9" * 400, None),
    ],
)
def test_the_first_number(text, expected):
    assert numbers.first(text) == expected


def test_the_figures_over_rows():
    pairs = [("$50", "89.00"), ("none", "30"), ("300", "380"), ("100", "500"), ("-5", "1,000")]
    rows = [made.answered(answer, (truth,)) for answer, truth in pairs]
    guesses, truths = np.array([50, 0, 300, 100, -5]), np.array([89, 30, 380, 500, 1000])
    figures = summarise(numbers.WRITTEN, rows, samples=1)
    assert figures["mae"].value == pytest.approx(abs(guesses - truths).mean())
    logs = np.log(1 + np.maximum(guesses, 0)) - np.log(1 + truths)
    assert figures["rmsle"].value == pytest.approx(math.sqrt((logs**2).mean()))
    assert figures["answered"].value == 4 / 5
    # 39 and 30 are less than 40; 80 of 380 is more than a fifth.
    assert per_row(numbers.WRITTEN, rows)["hit_rate"] == [1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    "guess, truth, hit",
    [("39.99", "0", 1), ("40", "0", 0), ("240", "200", 0), ("810", "1000", 1), ("800", "1000", 0)],
)
def test_a_hit_is_within_40_or_a_fifth(guess, truth, hit):
    assert per_row(numbers.WRITTEN, [made.answered(guess, (truth,))])["hit_rate"] == [hit]


def test_the_likeliest_tokens_are_weighed_by_their_probabilities():
    tokens = ((" 30", 0.3), ("40", 0.1), ("$", 0.4), ("about 7", 0.1), ("3.", 0.05))
    rows = [made.answered("99", ("32.5",), next=tokens), made.answered("99", ("5",), next=())]
    assert numbers.weighted(rows[0]) == pytest.approx((30 * 0.3 + 40 * 0.1) / 0.4)
    found = per_row(numbers.WEIGHTED, rows)
    assert found["weighted_mae"] == pytest.approx([0, 5], abs=1e-9)
    assert found["weighted_answered"] == [1, 0]


@pytest.mark.parametrize(
    "likely, truth, apart",
    [
        ("1 9 $ 12th", "150", True),
        ("1 95 $", "150", False),
        ("1 00", "150", False),
        ("1 9", "9.99", False),  # all of the price before the point is one digit
    ],
)
def test_digits_that_come_one_by_one_are_no_prices(likely, truth, apart):
    rows = [
        made.answered("150", (truth,), next=tuple((text, 0.2) for text in texts.split()))
        for texts in (likely, "3 $")
    ]
    assert numbers.by_digits(rows) == apart
    figures = summarise(numbers.WEIGHTED, rows, samples=20)
    for figure in figures.values():
        assert (figure.value is None) == (figure.low is None) == apart
    assert all((each == [None] * 2) == apart for each in per_row(numbers.WEIGHTED, rows).values())


def test_a_reference_without_a_number_is_named():
    row = made.answered("5", ("cheap",), place="prices.csv:7")
    with pytest.raises(
        ValueError, match=r"prices\.csv:7 has the reference 'cheap', which contains no"
    ):
        per_row(numbers.WRITTEN, [row])


def test_which_way_is_better():
    better = {metric.name: metric.higher for metric in numbers.WRITTEN}
    assert better == {"mae": False, "rmsle": False, "hit_rate": True, "answered": True}
