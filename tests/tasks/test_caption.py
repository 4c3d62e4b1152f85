"""Captions as text, and answers beside all of them."""

import pytest

from jaxtune.data.errors import RowError
from jaxtune.tasks import caption
from tests.tasks.answering import PLACE, scored


def test_the_prefix_is_a_line_of_its_own():
    assert caption.prefix({}, PLACE) == caption.prefix({"prefix": " "}, PLACE) == "caption en\n"
    assert caption.prefix({"prefix": "caption de\n"}, PLACE) == "caption de\n"


@pytest.mark.parametrize(
    "record, learnt, expected",
    [
        ({"suffix": " A cow. "}, "A cow.", ("A cow.",)),
        ({"caption": "A cow."}, "A cow.", ("A cow.",)),
        ({"caption": ["A cow.", "Beef."]}, "A cow.", ("A cow.", "Beef.")),
        ({"captions": ["A cow.", "Beef."]}, "A cow.", ("A cow.", "Beef.")),
        ({"suffix": "Moo.", "captions": ["A cow.", "Beef."]}, "Moo.", ("A cow.", "Beef.")),
        ({"suffix": "Moo.", "captions": []}, "Moo.", ("Moo.",)),
    ],
)
def test_one_caption_is_learnt_and_all_would_do(record, learnt, expected):
    assert caption.suffix(record, PLACE) == learnt
    assert caption.references(record, PLACE) == expected


@pytest.mark.parametrize(
    "record, problem",
    [
        ({"captions": [""], "suffix": None}, "no caption in 'suffix', 'caption', 'captions'"),
        ({"captions": [3]}, r"column 'captions' is \[3\]; expected a text or a list of texts"),
        (
            {"suffix": "Moo.", "captions": 3},
            "column 'captions' is 3; expected a text or a list of texts",
        ),
    ],
)
def test_rows_without_a_caption(record, problem):
    for write in (caption.suffix, caption.references):
        with pytest.raises(RowError, match=rf"rows\.jsonl:7: {problem}"):
            write(record, PLACE)


def test_answers_are_scored_against_all_captions():
    cow = {"suffix": "a cow", "captions": ["a cow", "a brown cow stands in a field"]}
    boat = {"captions": ["a red boat lies on the calm lake"]}
    told = scored(caption, (cow, "A brown cow stands in a field."), (boat, boat["captions"][0]))
    assert list(told) == ["cider", "bleu4", "rouge_l"]
    assert told["bleu4"] == pytest.approx(1) and told["rouge_l"] == pytest.approx(1)
    # Each is one of its captions: 10 for the boat, half of it and a little for the cow.
    assert 7.5 <= told["cider"] < 8
    swapped = scored(caption, (boat, "A brown cow stands in a field."), (cow, "the red boat"))
    assert swapped["cider"] < 1 and swapped["bleu4"] == 0
