"""Tables with highlighted cells as text."""

import pytest

from jaxtune.data.errors import RowError
from jaxtune.metrics import Prediction, per_row
from jaxtune.metrics.parent import parent
from jaxtune.tasks import totto
from tests.tasks.answering import scored

PLACE = "totto.jsonl:3"


def cell(value, header=False, across=1, down=1):
    return {"value": value, "is_header": header, "column_span": across, "row_span": down}


RECORD = {
    "table_page_title": "Ann Smith",
    "table_section_title": "Career",
    "table": [
        [cell("Season", True, down=2), cell("League", True, across=2)],
        [cell("Games", True), cell("Goals", True)],
        [cell("2003", True), cell("21"), cell("4")],
        [cell("2004", True), cell("30"), cell("12")],
    ],
    "highlighted_cells": [[3, 0], [3, 2]],
    "sentence_annotations": [{"final_sentence": "Ann Smith scored 12 goals in 2004."}],
}


def test_highlighted_cells_stand_behind_their_headers():
    assert totto.linearised(RECORD, PLACE).splitlines() == [
        "Page: Ann Smith",
        "Section: Career",
        "Season: 2004",
        "2004, League, Goals: 12",
    ]
    assert totto.suffix(RECORD, PLACE) == " Ann Smith scored 12 goals in 2004."


def test_a_target_as_the_other_layouts_have_it():
    columns = {"final_sentence": ["One.", "Two."]}
    assert totto.suffix({"sentence_annotations": columns}, PLACE) == " One."
    assert totto.suffix({"target": "Three."}, PLACE) == " Three."


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"highlighted_cells": []}, "no cell is highlighted"),
        ({"highlighted_cells": [[9, 9]]}, r"do not match \(IndexError"),
        ({"highlighted_cells": 5}, "do not match"),
        ({"table": [["a"]], "highlighted_cells": [[0, 0]]}, "do not match"),
        ({"table": None}, r"column 'table' is empty \(null\)"),
        ({"sentence_annotations": []}, "no sentence in 'target' or 's"),
    ],
)
def test_rows_that_cannot_be_told(change, problem):
    with pytest.raises(RowError, match=problem):
        totto.prefix(RECORD | change, PLACE)
        totto.suffix(RECORD | change, PLACE)


def test_references_are_all_sentences_that_would_do():
    sentences = [{"final_sentence": each} for each in ("One.", " Two. ", "")]
    record = RECORD | {"sentence_annotations": sentences, "target": "Three."}
    assert totto.references(record | {"references": ["Four.", "Five."]}, PLACE) == (
        "Four.",
        "Five.",
    )
    assert totto.references(record | {"references": []}, PLACE) == ("One.", "Two.")
    assert totto.references({"target": " Three. "}, PLACE) == ("Three.",)
    again = totto.prepared(record, PLACE)
    assert totto.references(again, PLACE) == ("Three.", "One.", "Two.")


@pytest.mark.parametrize(
    "record, problem",
    [
        ({}, "no sentence in 'target' or 's"),
        (
            {"target": "One.", "references": [1]},
            r"column 'references' is \[1\]; expected a text or a list",
        ),
        (
            {"target": "One.", "references": {"a": 1}},
            "column 'references' is {'a': 1}; expected a text",
        ),
    ],
)
def test_rows_without_references(record, problem):
    with pytest.raises(RowError, match=rf"totto\.jsonl:3: {problem}"):
        totto.references(record, PLACE)


def test_answers_are_scored_as_the_leaderboard_does():
    sentence = totto.references(RECORD, PLACE)[0]
    told = scored(totto, (RECORD, sentence))
    assert list(told) == ["bleu", "chrf", "rouge_l", "parent"]
    assert [told[name] for name in ("bleu", "chrf", "rouge_l")] == pytest.approx([100, 100, 1])
    assert 0.5 < told["parent"] < 1  # neither answer nor reference tells of the career
    assert scored(totto, (RECORD, "No."))["bleu"] == 0


def test_parent_knows_the_whole_page_and_wants_what_is_highlighted():
    record = RECORD | {"table_section_text": "Her youth|1999"}
    titles = [("", "Ann Smith"), ("", "Career")]
    cells = ["Season", "League", "Games", "Goals", "2003", "21", "4", "2004", "30", "12"]
    whole = [*(("", cell) for cell in cells), *titles, ("", "Her youth-1999")]
    expected = parent(lambda _: whole, None, lambda _: [("", "2004"), ("", "12"), *titles])
    answers = ["In her youth Ann Smith had 12 goals", "Ann had 21 games in 2003", "youth-1999", ""]
    rows = [Prediction(each, totto.references(record, PLACE), record) for each in answers]
    found = per_row(totto.METRICS, rows)["parent"]
    assert found == per_row([expected], rows)["parent"] and len(set(found)) == len(answers)
    # What the section's text says counts as told of.
    without = [Prediction(answers[0], rows[0].references, RECORD)]
    assert per_row(totto.METRICS, without)["parent"][0] < found[0]


def test_parent_of_cells_that_are_not_all_filled_in():
    record = RECORD | {
        "table": [[{"is_header": False}, {"value": 7}]],
        "highlighted_cells": [[0, 1]],
    }
    assert totto.prefix(record, PLACE) and scored(totto, (record, "7"))["parent"] > 0
