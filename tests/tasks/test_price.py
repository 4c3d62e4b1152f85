"""Prompts and prices as they are, and guesses scored."""

import math
from pathlib import Path

import numpy as np
import pytest

from jaxtune.data.errors import RowError
from jaxtune.data.prompts import Prompt, Template, Written
from jaxtune.data.sources import open_source
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.tasks import price
from tests.tasks.answering import PLACE, scored

TINY = Path(__file__).parents[2] / "configs" / "tiny"
ROW = {"prompt": "A kettle.\n\nPrice is $", "completion": "100.00"}
AWKWARD = [
    {"prompt": "<bos>A {lamp} of <eos> ", "completion": " 7 <eos>"},
    {"prompt": " ", "completion": "1,299.00\n"},
    {"prompt": "", "completion": 79.0},
    {"prompt": 12, "completion": 10**20},
]


def test_examples_are_those_of_templates_over_the_columns():
    tokenizer, source = Tokenizer.open(TINY / "base"), open_source(TINY / "price.jsonl")
    ours = Prompt(tokenizer, Written(price.prefix, price.suffix), 128)
    templates = Prompt(tokenizer, Template("{prompt}", "{completion}"), 128)
    for row in [*(source[number] for number in range(40)), *AWKWARD]:
        found, expected = ours(row, PLACE), templates(row, PLACE)
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_array_equal(found.scored, expected.scored)
        assert found.scored.any()


def test_guesses_are_scored_as_written_and_as_weighed():
    following = (("90", 0.6), ("110", 0.2), (" dollars", 0.2))
    assert 1 < len(following) <= price.NEXT
    found = scored(price, (ROW, "150.00"), following=following)
    assert next(iter(found)) == "mae"
    # Of the tokens that are numbers, 3 to 1: 95. Written: 50 off, and more than a fifth.
    expected = {
        "mae": 50, "rmsle": math.log(151 / 101), "hit_rate": 0, "answered": 1,
        "weighted_mae": 5, "weighted_rmsle": math.log(101 / 96), "weighted_hit_rate": 1,
        "weighted_answered": 1,
    }  # fmt: skip
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"completion": None}, r"column 'completion' is empty \(null\)"),
        ({"completion": ["7"]}, r"column 'completion' is \['7'\]; a text or a number"),
        ({"completion": True}, "column 'completion' is True; a text or a number"),
        ({"completion": "cheap"}, "column 'completion' is 'cheap'; a price was expected"),
        ({"completion": math.nan}, "column 'completion' is 'nan'; a price was expected"),
        ({"prompt": {"a": 1}}, r"column 'prompt' is \{'a': 1\}; a text or a number"),
    ],
)
def test_rows_without_a_price(change, problem):
    with pytest.raises(RowError, match=rf"rows\.jsonl:7: {problem}"):
        price.prefix(ROW | change, PLACE)
        price.references(ROW | change, PLACE)
