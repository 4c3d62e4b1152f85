"""Tables with highlighted cells as text."""

import pytest

from jaxtune.data.errors import RowError
from jaxtune.tasks import totto

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
        ({"highlighted_cells": [[9, 9]]}, r"do not fit each other \(IndexError"),
        ({"highlighted_cells": 5}, "do not fit each other"),
        ({"table": [["a"]], "highlighted_cells": [[0, 0]]}, "do not fit each other"),
        ({"table": None}, r"column 'table' is empty \(null\)"),
        ({"sentence_annotations": []}, "has no sentence in 'target' nor in"),
    ],
)
def test_rows_that_cannot_be_told(change, problem):
    with pytest.raises(RowError, match=problem):
        totto.prefix(RECORD | change, PLACE)
        totto.suffix(RECORD | change, PLACE)
