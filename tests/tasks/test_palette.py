"""Themes and their colours as text, and rows that have none."""

import re

import pytest

from jaxtune.data.errors import RowError
from jaxtune.tasks import palette
from tests.tasks.answering import scored

PLACE = "palette.csv:7"


@pytest.mark.parametrize(
    "given, written",
    [
        ("['#1F2A44', '#e8dcc5', '#A0b1C2', '#ffffff']", '#1f2a44 #e8dcc5 #a0b1c2 #ffffff'),
        ('["#1f2a44", "#e8dcc5"]', "#1f2a44 #e8dcc5 #000000 #000000"),
        (["1f2a44", "#FFF", "#abc", "#123456", "#654321"], "#1f2a44 #ffffff #aabbcc #123456"),
        (" ('#010203',) ", "#010203 #000000 #000000 #000000"),
    ],
)  # fmt: skip
def test_exactly_four_colours(given, written):
    expected = " [" + ", ".join(f'"{colour}"' for colour in written.split()) + "]"
    assert palette.suffix({"colors": given}, PLACE) == expected


@pytest.mark.parametrize(
    "given, problem",
    [
        ("blue and green", "column 'colors' is 'blue and green'; expected a list of colours"),
        ("[]", "expected a list of colours"),
        ("['#12345g']", "has '#12345g'; expected hex colours"),
        ("[1, 2]", "has '1'; expected hex colours"),
        ([1, 2], "has 1; expected hex colours"),
        ("['#abc', '123']", "has '123'; expected hex colours"),
        (7, "column 'colors' is 7; expected a list"),
        ("__import__('os').getcwd()", "expected a list of colours"),
    ],
)
def test_rows_without_a_list_of_colours(given, problem):
    with pytest.raises(RowError, match=r"palette\.csv:7: ") as error:
        palette.suffix({"colors": given}, PLACE)
    assert problem in str(error.value)


def test_the_prompt_states_the_task_and_the_theme():
    text = palette.prefix({"description": " a calm sea "}, PLACE)
    assert "JSON array of four" in text and text.endswith("Theme: a calm sea\nColors:")
    with pytest.raises(RowError, match="no column 'description'; did you mean 'Description'\?"):
        palette.prefix({"Description": "x"}, PLACE)


BLUES = {"description": "a calm sea", "colors": ["#1F2A44", "#fff", "#a0b1c2", "#000"]}


def test_answers_are_scored_against_the_four_colours():
    answer = palette.suffix(BLUES, PLACE)
    found = scored(palette, (BLUES, answer))
    assert found == {"valid": 1, "palette_distance": pytest.approx(0)}
    black, grey = {"colors": ["#000"]}, '["#000", "#FFFFFF", "#000", "#000000"]'
    found = scored(palette, (BLUES, answer), (black, grey), (BLUES, "blue"), (BLUES, "[]"))
    # Of the two palettes one has a white for a black, 100 apart, as one colour of four.
    assert found == {"valid": 0.5, "palette_distance": pytest.approx(12.5)}


def test_an_answer_is_shown_as_it_looks():
    answer = ' ["#1F2a44", "#fff", "#A0b1C2", "#000000"]'
    written = "#1F2a44 #fff #A0b1C2 #000000"
    assert palette.shown(answer, colour=False) == written
    swatches, _, text = palette.shown(answer, colour=True).partition("  #")
    assert text == written[1:]
    blocks = re.findall(r"\x1b\[48;2;(\d+);(\d+);(\d+)m {6}\x1b\[0m", swatches)
    assert blocks == [("31", "42", "68"), ("255",) * 3, ("160", "177", "194"), ("0",) * 3]


@pytest.mark.parametrize(
    "answer", ["blue\x1b[1m", "[]", '["#fff"]', '["#1", "#2", "#3", "#4"]', "7", "[1, 2, 3, 4]"]
)
@pytest.mark.parametrize("colour", [False, True])
def test_what_is_no_palette_is_shown_as_said(answer, colour):
    assert palette.shown(f" {answer}\n", colour) == f"not a palette of four: {answer!r}"
