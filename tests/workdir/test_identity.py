"""Files that a run stands on: which changes are told, and in which words."""

import pytest

from jaxtune.workdir.directory import claim, read_json, run_directory
from jaxtune.workdir.errors import WorkdirError
from jaxtune.workdir.identity import refuse_replaced

BEGAN = {"base": {"a": [10, "x", 1], "b": [20, "y", 1]}, "task": {"t.py": [5, "z", 1]}}


@pytest.fixture
def place(tmp_path):
    with run_directory(tmp_path / "run", {}) as workdir:
        workdir.adopt(stands_on=BEGAN)
    return tmp_path / "run"


@pytest.mark.parametrize(
    "now, told",
    [
        ({"base": {"a": [10, "x", 1]}, "task": BEGAN["task"]}, ["base: b is gone"]),
        ({**BEGAN, "adapter": {"c": [1, "q", 1]}}, ["adapter: c is new"]),
        ({**BEGAN, "task": {"t.py": [6, "z", 1]}}, ["task: t.py had 5 bytes and has 6"]),
        (
            {**BEGAN, "base": {"a": [10, "!", 1], "b": [2000, "y", 1]}},
            ["base: a has the same size and other content", "base: b had 20 bytes and has 2,000"],
        ),
    ],
)
def test_changes_are_told(now, told, place):
    with pytest.raises(WorkdirError) as error:
        refuse_replaced(place, now, "or train again")
    assert str(error.value).splitlines() == [
        f"the run in {place} was begun with other files:",
        *(f"  {line}" for line in told),
        "Restore them, or train again",
    ]


def test_the_same_content_written_again_is_a_note(place):
    now = {**BEGAN, "base": {"a": [10, "x", 2], "b": [20, "y", 1]}}
    assert refuse_replaced(place, BEGAN, "") == []
    assert refuse_replaced(place, now, "") == ["note: a was written again since the run began"]


@pytest.mark.parametrize("found", [5, {"base": 5}, {"base": {"a": 5}}, {"base": {"a": ["x"] * 3}}])
def test_an_identity_that_jaxtune_did_not_write(found, place):
    with run_directory(place, {}) as workdir:
        workdir.note(stands_on=found)
    with pytest.raises(WorkdirError, match=r"stands_on is not what jaxtune wrote; .* or train"):
        refuse_replaced(place, BEGAN, "or train again")


def test_a_run_from_before_identities_passes(tmp_path):
    claim(tmp_path / "old")
    assert "stands_on" not in read_json(tmp_path / "old/run.json")
    assert refuse_replaced(tmp_path / "old", BEGAN, "") == []
    assert refuse_replaced(tmp_path / "new", BEGAN, "") == []
