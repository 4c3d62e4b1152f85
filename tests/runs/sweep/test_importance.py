"""Importance of keys and spread over seeds, beside values known by hand and from scipy."""

import itertools

import pytest
from scipy import stats

from jaxtune.runs.sweep.importance import LIKELY, STUDENT, importances, over_seeds


def test_a_key_that_decides_and_one_that_does_not():
    results = [
        ({"rank": rank, "seed": seed}, rank + seed / 100)
        for rank, seed in itertools.product((1, 2, 4), (0, 1))
    ]
    found = importances(results, [])
    assert list(found) == ["rank", "seed"]
    assert found["rank"] > 0.99 and found["seed"] == 0


def test_a_range_is_cut_into_quarters():
    results = [({"lr": lr / 16}, (lr / 16 - 0.5) ** 2) for lr in range(17)]
    assert importances(results, ["lr"])["lr"] == pytest.approx(0.682, abs=1e-3)
    assert importances(results[:3], ["lr"]) == {"lr": 0.0}  # too few to tell


def test_nothing_varies():
    assert importances([({"lr": 1}, 2.0), ({"lr": 2}, 2.0), ({"lr": 2}, 2.0)], []) == {"lr": 0.0}
    assert importances([], []) == {}


def test_keys_that_some_trials_lack():
    results = [({"kind": "full"}, 3.0), ({"kind": "full"}, 3.1)] + [
        ({"kind": "lora", "rank": rank}, 1.0 + rank) for rank in (0, 1, 0, 1)
    ]
    assert importances(results, [])["rank"] == 1.0


def test_intervals_are_those_of_students_t():
    for freedom, quantile in enumerate(STUDENT, 1):
        assert quantile == pytest.approx(stats.t.ppf((1 + LIKELY) / 2, freedom), abs=0.005)
    results = [({"lr": 1, "seed": seed}, value) for seed, value in enumerate((1.0, 2.0, 3.0))]
    ((rest, values, interval),) = over_seeds([*results, ({"lr": 2, "seed": 0}, 9.0)])
    assert (rest, values) == ({"lr": 1}, [1.0, 2.0, 3.0])
    expected = stats.t.interval(LIKELY, 2, 2.0, 1 / 3**0.5)
    assert interval == pytest.approx(expected, abs=2e-3)  # quantiles have four digits
