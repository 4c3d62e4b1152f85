"""Files are written whole or not at all; JSON files are read only in the shape that is expected."""

import json
import os

import pytest

from jaxtune.files import NUMBER, UnreadableError, misfit, read_json, write_json


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not valid JSON (Expecting value"),
        (b"{'a'", "is not valid JSON (Expecting property name"),
        (b"\xff\xfe", "is not valid JSON ('utf-8' codec"),
        (b"[" * 100_000, "is not valid JSON (it is nested too deeply"),
        (b'{"a":' * 100_000, "is not valid JSON (it is nested too deeply"),
        (b"9" * 5000, "is not valid JSON (Exceeds the limit"),
        (b" " * 1001, "has 1,001 bytes; expected JSON of at most 1,000 bytes"),
    ],
)
def test_json_that_cannot_be_read_is_one_message(content, says, tmp_path):
    file = tmp_path / "x.json"
    file.write_bytes(content)
    most = 1000 if content[:1] == b" " else 2**20
    with pytest.raises(UnreadableError) as caught:
        read_json(file, most=most)
    assert str(caught.value).startswith(f"{file} {says}")


def test_what_is_no_file_is_no_json(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnreadableError, match="is not a regular file; expected JSON"):
        read_json(tmp_path / "pipe")
    with pytest.raises(UnreadableError, match="cannot be read: Is a directory"):
        read_json(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "nowhere")


def test_what_is_written_is_read(tmp_path):
    write_json(tmp_path / "a" / "x.json", {"ä": [1, None]})
    assert read_json(tmp_path / "a" / "x.json") == {"ä": [1, None]}
    (tmp_path / "bom.json").write_text("[1]", encoding="utf-8-sig")
    assert read_json(tmp_path / "bom.json") == [1]


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


def test_a_file_of_another_shape_is_refused(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"files": {}}))
    assert read_json(tmp_path / "a.json", SHAPE) == {"files": {}}
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(UnreadableError, match=r"a.json is not valid \(expected an object, found a"):
        read_json(tmp_path / "a.json", SHAPE)


def test_half_a_character_is_written_as_json_escapes_it(tmp_path):
    """Names in other programs' files may hold lone surrogates; found by `make hostile`."""
    content = {"a\ud800": "é\udcff"}
    write_json(tmp_path / "a.json", content)
    assert json.loads((tmp_path / "a.json").read_bytes()) == content
