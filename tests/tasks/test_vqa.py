"""Questions and the answers that most people gave."""

import pytest

from jaxtune.data.errors import RowError
from jaxtune.tasks import vqa
from tests.tasks.answering import PLACE, scored

TEN = ["two"] * 2 + ["3"] * 3 + ["2"] * 4 + ["many"]
ROW = {"question": " How many cows? ", "answers": TEN}


def test_the_question_is_a_line_of_its_own():
    assert vqa.prefix(ROW, PLACE) == "answer en How many cows?\n"


def test_what_most_gave_is_learnt_and_all_count():
    assert vqa.suffix(ROW, PLACE) == "2"
    assert vqa.references(ROW, PLACE) == tuple(TEN)
    published = {"answers": [{"answer": each, "answer_id": at} for at, each in enumerate(TEN)]}
    assert vqa.references(published, PLACE) == tuple(TEN)
    assert vqa.suffix({"answers": ["b", "a", "a ", "b"]}, PLACE) == "b"
    for record in ({"answer": " red "}, {"answer": "red", "answers": None}):
        assert vqa.suffix(record, PLACE) == "red" and vqa.references(record, PLACE) == ("red",)


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"question": " "}, "column 'question' is ' '; expected a question"),
        ({"question": ["a?"]}, r"column 'question' is \['a\?'\]; expected a question"),
        ({"answers": []}, "no answer in 'answers' or 'answer'"),
        ({"answers": 2}, "column 'answers' is 2; expected a text or a list of texts"),
        ({"answers": [{"said": "2"}]}, r"column 'answers' is \[None\]; expected a text or a list"),
    ],
)
def test_rows_without_question_or_answer(change, problem):
    with pytest.raises(RowError, match=rf"rows\.jsonl:7: {problem}"):
        vqa.prefix(ROW | change, PLACE)
        vqa.references(ROW | change, PLACE)


def test_answers_are_scored_by_how_many_gave_them():
    # Six say two, by word or digit; three say three: right but where one of these is left out.
    assert scored(vqa, (ROW, "two")) == {"vqa": 1, "exact": 1}
    assert scored(vqa, (ROW, "three")) == pytest.approx({"vqa": (7 + 3 * 2 / 3) / 10, "exact": 0})
    assert scored(vqa, (ROW, "cows"), (ROW, "2")) == {"vqa": 0.5, "exact": 0.5}
