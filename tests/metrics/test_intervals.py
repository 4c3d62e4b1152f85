"""The bootstrap: what it holds, and that it is what resampling the rows themselves would give."""

import numpy as np
import pytest

from jaxtune.metrics import intervals, mean, paired, per_row, summarise
from jaxtune.metrics.bleu import BLEU
from jaxtune.metrics.exact import EXACT
from tests.metrics import made

NUMBER = mean("number", lambda row: row.record["number"])


def numbered(values):
    return [made.answered("", record={"number": each}) for each in values]


def test_an_interval_holds_the_truth_about_as_often_as_it_says():
    draw = np.random.default_rng(0)
    held = 0
    for seed in range(300):
        rows = numbered(draw.exponential(size=50))
        figure = summarise([NUMBER], rows, samples=300, seed=seed, level=0.9)["number"]
        held += figure.low <= 1 <= figure.high
    # 270 expected with a deviation of 5; percentiles of few skewed rows hold a little less.
    assert 250 <= held <= 285


def test_an_interval_is_as_wide_as_the_means_own_deviation():
    values = np.random.default_rng(1).normal(3, 2, size=400)
    figure = summarise([NUMBER], numbered(values), samples=4000)["number"]
    assert figure.value == pytest.approx(values.mean())
    # A quantile of 4000 samples is off by about 2 % of the width.
    expected = 2 * 1.96 * values.std() / 20
    assert figure.high - figure.low == pytest.approx(expected, rel=0.1)
    assert figure.high - figure.value == pytest.approx(figure.value - figure.low, rel=0.15)


def test_a_corpus_metrics_interval_is_that_of_resampled_rows():
    rows, samples = made.rows(0, count=25), 40
    drawn = np.random.default_rng(5).integers(25, size=(samples, 25))
    values = [
        summarise([BLEU], [rows[at] for at in each], samples=1)["bleu"].value for each in drawn
    ]
    figure = summarise([EXACT, BLEU], rows, samples=samples, seed=5, level=0.8)["bleu"]
    assert (figure.low, figure.high) == pytest.approx(tuple(np.quantile(values, [0.1, 0.9])))
    assert figure.low < figure.value < figure.high


def test_the_same_seed_gives_the_same_however_much_is_drawn_at_once(monkeypatch):
    rows = made.rows(1, count=30)
    expected = summarise([BLEU, EXACT], rows, samples=50)
    monkeypatch.setattr(intervals, "DRAWN", 100)
    found = summarise([BLEU, EXACT], rows, samples=50)
    for name, figure in expected.items():
        # Products of matrices of another height may add in another order.
        assert vars(found[name]) == pytest.approx(vars(figure), rel=1e-12)
    assert summarise([BLEU], rows, samples=50) == summarise([BLEU], rows, samples=50)
    assert summarise([BLEU], rows, samples=50) != summarise([BLEU], rows, samples=50, seed=1)


def test_pairs_are_resampled_together():
    values = np.random.default_rng(2).normal(0, 10, size=200)
    gains = np.random.default_rng(3).normal(1, 0.5, size=200)
    found = paired([NUMBER], numbered(values), numbered(values + gains))["number"]
    assert found.first == summarise([NUMBER], numbered(values))["number"]
    assert found.second == summarise([NUMBER], numbered(values + gains))["number"]
    # Each set alone varies too much to tell them apart; row by row they do not.
    assert found.overlap
    gain = summarise([NUMBER], numbered(gains))["number"]
    assert vars(found.difference) == pytest.approx(vars(gain), rel=1e-9)
    assert found.difference.low > 0.9
    assert not paired([NUMBER], numbered(values), numbered(values + 50))["number"].overlap


def test_rows_that_do_not_count():
    found = per_row([NUMBER], numbered([1.0, None, 3.0]))
    assert found == {"number": [1.0, None, 3.0]}
    figure = summarise([NUMBER], numbered([1.0, None, 3.0]))["number"]
    assert (figure.value, figure.low, figure.high) == (2.0, 1.0, 3.0)
    # Where hardly any row counts, the resamples without one are left out.
    figure = summarise([NUMBER], numbered([7.0, *[None] * 9]))["number"]
    assert (figure.value, figure.low, figure.high) == (7.0, 7.0, 7.0)
    figure = summarise([NUMBER], numbered([None, None]))["number"]
    assert (figure.value, figure.low, figure.high) == (None, None, None)
    compared = paired([NUMBER], numbered([None]), numbered([1.0]))["number"]
    assert compared.difference.value is None and not compared.overlap


@pytest.mark.parametrize(
    "call, problem",
    [
        (lambda: summarise([NUMBER], []), "there are no answers to score"),
        (lambda: per_row([NUMBER], []), "there are no answers to score"),
        (lambda: paired([NUMBER], [], []), "there are no answers to score"),
        (lambda: summarise([NUMBER, NUMBER], numbered([1.0])), "distinct names; found number,"),
        (lambda: summarise([NUMBER], numbered([1.0]), samples=0), "found samples=0"),
        (lambda: summarise([NUMBER], numbered([1.0]), level=95), "such as 0.95; found 95"),
        (lambda: paired([NUMBER], numbered([1.0]), numbered([1.0, 2.0])), "found 1 and 2 rows"),
        (
            lambda: paired([EXACT], [made.answered("a", ("b",), place="x.csv:2")],
                           [made.answered("a", ("c",), place="x.csv:3")]),
            "found x.csv:2 beside x.csv:3, whose references differ",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_told(call, problem):
    with pytest.raises(ValueError, match=problem):
        call()


def test_no_metric_is_no_figure():
    assert summarise([], numbered([1.0])) == {}
