"""chrF2 beside sacreBLEU's."""

import pytest
import sacrebleu
from sacrebleu.metrics import CHRF as Live

from jaxtune.metrics import chrf, per_row, summarise
from tests.metrics import made

CLOSE = dict(rel=1e-12, abs=1e-12)  # one sum in another order


@pytest.mark.parametrize("references", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_a_corpus_is_sacrebleus(seed, references):
    rows = made.rows(seed, references=references)
    streams = [list(each) for each in zip(*[row.references for row in rows], strict=True)]
    expected = Live().corpus_score([row.answer for row in rows], streams).score
    found = summarise([chrf.CHRF], rows, samples=1)["chrf"].value
    assert found == pytest.approx(expected, **CLOSE)
    assert 0 < found < 100


def test_each_row_alone_is_sacrebleus():
    rows = [*made.awkward(), *made.rows(7)]
    expected = [sacrebleu.sentence_chrf(row.answer, row.references).score for row in rows]
    assert per_row([chrf.CHRF], rows)["chrf"] == pytest.approx(expected, **CLOSE)
    assert len(set(expected)) > 20


def test_of_references_as_good_the_first_is_summed():
    rows = [made.answered("ab", ("abcd", "dcab")), made.answered("abc", ("abd",))]
    expected = Live().corpus_score(["ab", "abc"], [["abcd", "abd"], ["dcab", "abd"]]).score
    assert summarise([chrf.CHRF], rows, samples=1)["chrf"].value == pytest.approx(expected, **CLOSE)
