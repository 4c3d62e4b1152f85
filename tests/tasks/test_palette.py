"""Themes and their colours as text, and rows that have none."""

import pytest

from jaxtune.data.errors import RowError
from jaxtune.tasks import find, names, palette

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
        ("blue and green", "column 'colors' is 'blue and green'; a list of colours was expected"),
        ("[]", "a list of colours was expected"),
        ("['#12345g']", "holds '#12345g', which is no hex colour"),
        ("[1, 2]", "holds '1', which is no hex colour"),
        ([1, 2], "holds 1, which is no hex colour"),
        ("['#abc', '123']", "holds '123', which is no hex colour"),
        (7, "column 'colors' is 7; a list"),
        ("__import__('os').getcwd()", "a list of colours was expected"),
    ],
)
def test_rows_without_a_list_of_colours(given, problem):
    with pytest.raises(RowError, match=r"palette\.csv:7: ") as error:
        palette.suffix({"colors": given}, PLACE)
    assert problem in str(error.value)


def test_the_prompt_states_the_task_and_the_theme():
    text = palette.prefix({"description": " a calm sea "}, PLACE)
    assert "JSON array of four" in text and text.endswith("Theme: a calm sea\nColors:")
    with pytest.raises(RowError, match="has no column 'description'; the nearest is 'Description'"):
        palette.prefix({"Description": "x"}, PLACE)


def test_tasks_are_found_by_name():
    assert {"palette", "totto"} <= set(names())
    assert find("palette") is palette
    for name in names():
        task = find(name)
        assert task.COLUMNS and callable(task.prefix) and callable(task.suffix)
    with pytest.raises(ValueError, match=r"data\.task 'pallete' is not one of 'palette', 'totto'"):
        find("pallete")
