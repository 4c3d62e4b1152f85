"""The answer as it is, but for its spaces."""

import pytest

from jaxtune.metrics import exact, per_row
from tests.metrics import made


@pytest.mark.parametrize(
    "answer, references, expected",
    [
        (" two\n words ", ("one", "two words"), 1),
        ("two words", ("Two words",), 0),
        ("twowords", ("two words",), 0),
        ("", (" ",), 1),
    ],
)
def test_any_reference_will_do_but_for_spaces(answer, references, expected):
    assert per_row([exact.EXACT], [made.answered(answer, references)])["exact"] == [expected]
