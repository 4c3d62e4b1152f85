"""ROUGE-L beside Google's rouge-score."""

import pytest

from jaxtune.metrics import per_row, rouge, summarise
from tests.metrics import made


@pytest.mark.parametrize("seed", range(3))
def test_rouge_l_is_rouge_scores(seed):
    from rouge_score.rouge_scorer import RougeScorer  # slow to import for all workers

    rows = [*made.awkward(), *made.rows(seed)]
    live = RougeScorer(["rougeL"], use_stemmer=False)
    expected = [live.score_multi(row.references, row.answer)["rougeL"].fmeasure for row in rows]
    # The same fraction, from counts instead of from precision and recall.
    assert per_row([rouge.ROUGE_L], rows)["rouge_l"] == pytest.approx(expected, abs=1e-12)
    whole = summarise([rouge.ROUGE_L], rows, samples=1)["rouge_l"].value
    assert whole == pytest.approx(sum(expected) / len(expected), abs=1e-12)
    assert len(set(expected)) > 20
