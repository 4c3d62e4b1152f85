"""Formats in templates are bounded, and refused before any row is read."""

import pytest

from jaxtune.data.errors import RowError
from jaxtune.data.examples import Template
from tests.data.rows import PLACE, make


@pytest.mark.parametrize(
    "template, problem",
    [
        (
            "{prefix:>1000000000}",
            "column 'prefix': the format '>1000000000' has a number",
        ),
        ("{x:.99999f}", "column 'x': the format '.99999f' has a number above 999"),
        ("{x:{width}}", "column 'x': found braces in the format '{width}'; write the number"),
        ("{x!z}", "column 'x': found !z, expected !s, !r or !a"),
        ("a \ud800 {x}", "contains half of a character"),
    ],
)
def test_formats_that_are_refused(template, problem):
    for texts in ((template, "{y}"), ("{y}", template)):
        with pytest.raises(ValueError, match=r"^template") as found:
            Template(*texts)
        assert problem in str(found.value)


def test_attributes_and_items_are_names_of_columns(tokenizer):
    for name in ("x.__class__", "x[0]"):
        with pytest.raises(RowError, match="no column 'x"):
            make(tokenizer("gemma"), Template(f"{{{name}}}", "b"))({"x": "a"}, PLACE)


def test_widths_up_to_999(tokenizer):
    example = make(tokenizer("gemma"), Template("{x:>999}", "b"), 2000)({"x": "a"}, PLACE)
    assert tokenizer("gemma").decode(example.tokens) == " " * 998 + "ab"
