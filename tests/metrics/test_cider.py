"""CIDEr-D beside the paper's formula, over vectors with a place for every n-gram there is."""

from functools import cache

import numpy as np
import pytest

from jaxtune.metrics import cider, per_row, summarise, words
from tests.marks import slow_after
from tests.metrics import made


@cache
def runs(text, order):
    found = words.caption(text)
    return [tuple(found[at : at + order]) for at in range(len(found) - order + 1)]


def score(row, rows, order):
    """g of one order: the clipped cosine, damped by the difference in length, over references."""
    texts = [row.answer, *(each for other in rows for each in other.references)]
    every = sorted({run for text in texts for run in runs(text, order)})
    having = [sum(any(run in runs(each, order) for each in other.references) for other in rows)
              for run in every]  # fmt: skip
    rarity = np.log(len(rows) / np.maximum(having, 1))
    answer, *references = (
        np.array([runs(text, order).count(run) for run in every]) * rarity
        for text in (row.answer, *row.references)
    )
    total = 0.0
    for text, vector in zip(row.references, references, strict=True):
        norms = np.linalg.norm(answer) * np.linalg.norm(vector)
        cosine = np.minimum(answer, vector) @ vector / norms if norms else 0.0
        length = len(runs(row.answer, 2)) - len(runs(text, 2))
        total += cosine * np.exp(-(length**2) / (2 * 6.0**2))
    return 10 * total / len(references)


@pytest.mark.parametrize("seed", slow_after(1, range(2)))
def test_cider_is_the_papers(seed):
    rows = [*made.awkward(), *made.rows(seed, count=12)]
    expected = [np.mean([score(row, rows, order) for order in range(1, 5)]) for row in rows]
    # Sums in another order.
    assert per_row([cider.CIDER], rows)["cider"] == pytest.approx(expected, abs=1e-10)
    whole = summarise([cider.CIDER], rows, samples=1)["cider"].value
    assert whole == pytest.approx(np.mean(expected), abs=1e-10)
    assert len({round(each, 6) for each in expected}) > 10


def test_a_reference_itself_scores_10_and_what_all_say_nothing():
    texts = ["red cats sleep here", "old dogs run there", "two men eat now"]
    rows = [made.answered(text, (text,)) for text in texts]
    assert per_row([cider.CIDER], rows)["cider"] == pytest.approx([10, 10, 10])
    same = [made.answered("a red cat sleeps", ("a red cat sleeps",))] * 3
    assert per_row([cider.CIDER], same)["cider"] == [0, 0, 0]
