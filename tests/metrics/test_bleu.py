"""BLEU beside sacreBLEU, with and without its tokeniser and smoothing."""

import pytest
import sacrebleu
from sacrebleu.metrics import BLEU as Live

from jaxtune.metrics import bleu, per_row, summarise, words
from tests.metrics import made

CLOSE = dict(rel=1e-12, abs=1e-12)  # one sum in another order


def value(metric, rows):
    return summarise([metric], rows, samples=1)[metric.name].value


def corpus(rows, live, split=str):
    streams = zip(*[[split(each) for each in row.references] for row in rows], strict=True)
    return live.corpus_score([split(row.answer) for row in rows], [list(each) for each in streams])


@pytest.mark.parametrize("references", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_a_corpus_is_sacrebleus(seed, references):
    rows = made.rows(seed, references=references)
    assert value(bleu.BLEU, rows) == pytest.approx(corpus(rows, Live()).score, **CLOSE)
    assert 0 < value(bleu.BLEU, rows) < 100


def test_each_row_alone_is_sacrebleus():
    rows = [*made.awkward(), *made.rows(7)]
    expected = [
        sacrebleu.sentence_bleu(row.answer, row.references, use_effective_order=False).score
        for row in rows
    ]
    assert per_row([bleu.BLEU], rows)["bleu"] == pytest.approx(expected, **CLOSE)
    assert len(set(expected)) > 20


def test_bleu4_is_bleu_unsmoothed_over_captions_words():
    rows = made.rows(3)
    live = Live(tokenize="none", smooth_method="none", force=True)
    expected = corpus(rows, live, lambda text: " ".join(words.caption(text))).score / 100
    assert value(bleu.BLEU4, rows) == pytest.approx(expected, **CLOSE)
    assert value(bleu.BLEU4, rows) != pytest.approx(value(bleu.BLEU, rows) / 100, abs=0.01)


def test_bleu4_without_a_run_of_four_is_0():
    assert value(bleu.BLEU4, [made.answered("a red cat sat", ("a red dog sat",))]) == 0
    assert value(bleu.BLEU4, [made.answered("a cat", ("a cat",))]) == 0


def test_a_row_without_a_reference_is_named():
    with pytest.raises(ValueError, match=r"rows\.jsonl:3 has no reference"):
        value(bleu.BLEU, [made.answered("a", place="rows.jsonl:3")])
