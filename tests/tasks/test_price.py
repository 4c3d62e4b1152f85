"""Prompts and prices as they are, and guesses scored."""

import math
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from jaxtune.data.errors import RowError
from jaxtune.data.examples import RowEncoder, Template, Written
from jaxtune.data.sources import open_source
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.display.plots import COLOURS
from jaxtune.metrics import Prediction
from jaxtune.tasks import price
from tests.tasks.answering import PLACE, scored

TINY = Path(__file__).parents[2] / "configs" / "tiny"
TICK = re.compile(r">\$[0-9,.]+<")
ROW = {"prompt": "A kettle.\n\nPrice is $", "completion": "100.00"}
AWKWARD = [
    {"prompt": "<bos>A {lamp} of <eos> ", "completion": " 7 <eos>"},
    {"prompt": " ", "completion": "1,299.00\n"},
    {"prompt": "", "completion": 79.0},
    {"prompt": 12, "completion": 10**20},
]


def test_examples_are_those_of_templates_over_the_columns():
    tokenizer, source = Tokenizer.open(TINY / "base"), open_source(TINY / "price.jsonl")
    ours = RowEncoder(tokenizer, Written(price.prefix, price.suffix), 128)
    templates = RowEncoder(tokenizer, Template("{prompt}", "{completion}"), 128)
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


def test_why_there_are_no_weighted_metrics():
    rows = [Prediction("150", ("100",), ROW, PLACE, ((text, 0.5),)) for text in ("1", "2")]
    (said,) = price.remarks(rows)
    assert "splits numbers into single digits" in said
    assert price.remarks([*rows, Prediction("1", ("2",), ROW, PLACE, (("90", 0.5),))]) == []


def rows_of(*pairs):
    return [
        Prediction(answer, (truth,), ROW, f"x.csv:{n}") for n, (answer, truth) in enumerate(pairs)
    ]


def drawn(svg, name):
    """Parts of a picture that say something on pointing."""
    found = ElementTree.fromstring(svg).iter(f"{{http://www.w3.org/2000/svg}}{name}")
    return [each for each in found if len(each)]


def test_plots_have_every_item_coloured_by_how_far_off_it_is():
    rows = rows_of(("$120", "100"), ("150.00", "100"), ("none", "100"), ("600", "500"))
    plots = price.plots({"tuned": rows})
    assert [*plots] == ["tuned"] and [*plots["tuned"]] == ["prices.svg", "errors.svg"]
    colours = dict(zip(("hit", "near", "far"), COLOURS, strict=False))
    dots, columns = (
        drawn(plots["tuned"][file], name)
        for file, name in (("prices.svg", "circle"), ("errors.svg", "rect"))
    )
    # 20 off; 50, a half, which is more than 40 but less than 80; all of it; 100, a fifth of 500.
    kinds = ["hit", "near", "far", "near"]
    assert [each.get("fill") for each in dots] == [colours[kind] for kind in kinds]
    assert [each[0].text for each in dots] == [
        "x.csv:0 answered '$120': price $100, guess $120",
        "x.csv:1 answered '150.00': price $100, guess $150",
        "x.csv:2 answered 'none': price $100, guess $0",
        "x.csv:3 answered '600': price $500, guess $600",
    ]
    assert [each[0].text.rpartition("$")[2] for each in columns] == ["20", "50", "100", "100"]
    assert "mean $67.50" in plots["tuned"]["errors.svg"]


def test_plots_of_two_are_on_equal_axes():
    base, tuned = rows_of(("9000", "100"), ("7", "20")), rows_of(("90", "100"), ("21", "20"))
    both = price.plots({"base": base, "tuned": tuned})
    for file in ("prices.svg", "errors.svg"):
        ticks = [TICK.findall(both[name][file]) for name in ("base", "tuned")]
        assert ticks[0] == ticks[1] and ">$1,000<" in ticks[0]
    assert TICK.findall(price.plots({"tuned": tuned})["tuned"]["prices.svg"]) != ticks[1]
    assert "at most" not in both["base"]["prices.svg"]


def test_guesses_beyond_all_prices_are_drawn_at_the_edge():
    rows = rows_of(("9" * 307, "100"), (f"-{'9' * 307}", "100"))
    for svg in price.plots({"base": rows})["base"].values():
        assert "guesses clipped at $10,000" in svg


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"completion": None}, r"column 'completion' is empty \(null\)"),
        ({"completion": ["7"]}, r"column 'completion' is \['7'\]; expected a text or a number"),
        ({"completion": True}, "column 'completion' is True; expected a text or a number"),
        ({"completion": "cheap"}, "column 'completion' is 'cheap'; expected a price"),
        ({"completion": math.nan}, "column 'completion' is 'nan'; expected a price"),
        ({"prompt": {"a": 1}}, r"column 'prompt' is \{'a': 1\}; expected a text or a number"),
    ],
)
def test_rows_without_a_price(change, problem):
    with pytest.raises(RowError, match=rf"rows\.jsonl:7: {problem}"):
        price.prefix(ROW | change, PLACE)
        price.references(ROW | change, PLACE)
