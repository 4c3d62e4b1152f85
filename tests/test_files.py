"""JSON files are read only in the shape that is expected, and told by name if they have another."""

import json
import os

import pytest

from jaxtune.files import LARGEST_JSON, NUMBER, misfit, read_json

SHAPE = {"files": {...: {"bytes": int}}, "step?": (int, None), "notes?": [str], "loss?": NUMBER}


@pytest.mark.parametrize(
    "content",
    [
        {"files": {}},
        {"files": {"a": {"bytes": 1, "more": []}}, "step": None, "other": 3},
        {"files": {}, "step": 4, "notes": ["a"], "loss": 1},
        {"files": {}, "loss": 0.5},
    ],
)
def test_what_fits(content):
    assert misfit(content, SHAPE) == ""


@pytest.mark.parametrize(
    "content, problem",
    [
        ([1], "expected an object, found a list"),
        (None, "expected an object, found null"),
        ({}, "it lacks 'files'"),
        ({"files": []}, "files: expected an object, found a list"),
        ({"files": {"a": {"bytes": "1"}}}, "files.a.bytes: expected an integer, found a text"),
        ({"files": {"a": {}}}, "files.a lacks 'bytes'"),
        ({"files": {}, "step": True}, "step: expected an integer, found true or false"),
        ({"files": {}, "notes": ["a", 1]}, "notes.1: expected a text, found an integer"),
        ({"files": {}, "loss": float("nan")}, "loss is beyond all bounds"),
        ({"files": {}, "step": 10**400}, "step is beyond all bounds"),
    ],
)
def test_what_does_not_fit(content, problem):
    assert misfit(content, SHAPE) == problem


@pytest.mark.parametrize(
    "content, problem",
    [
        (b"", "is not valid JSON"),
        (b"{", "is not valid JSON"),
        (b"\xff\xfe{}", "is not valid"),
        (b"[1]", "is not valid (expected an object, found a list); repair or remove it"),
        (b"[" * 200_000, "it is nested too deeply"),
        (b"9" * 5000, "is not valid"),
    ],
)
def test_files_that_are_refused(content, problem, tmp_path):
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(ValueError) as failure:
        read_json(file)
    assert problem in str(failure.value) and str(failure.value).startswith(str(file))


def test_what_is_no_file_of_a_sensible_size(tmp_path):
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(LARGEST_JSON + 1)
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    for name, problem in {
        "huge.json": "at most 67,108,864 are read",
        "pipe.json": "not a regular file",
        "folder.json": "not a regular file",
    }.items():
        with pytest.raises(ValueError, match=problem):
            read_json(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")
    (tmp_path / "one.json").write_text(json.dumps({"files": {}}))
    assert read_json(tmp_path / "one.json", SHAPE) == {"files": {}}
