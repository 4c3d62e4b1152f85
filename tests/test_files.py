"""Files are written whole or not at all, and JSON files are read whatever they hold."""

import json
import os

import pytest

from jaxtune.files import UnreadableError, read_json, write_json


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not JSON: Expecting value"),
        (b"{'a'", "is not JSON: Expecting property name"),
        (b"\xff\xfe", "is not JSON: 'utf-8' codec"),
        (b"[" * 100_000, "is not JSON: it is nested too deeply"),
        (b'{"a":' * 100_000, "is not JSON: it is nested too deeply"),
        (b"9" * 5000, "is not JSON: Exceeds the limit"),
        (b" " * 1001, "has 1,001 bytes; expected JSON of at most 1,000 bytes"),
    ],
)
def test_json_that_cannot_be_read_is_one_message(content, says, tmp_path):
    file = tmp_path / "x.json"
    file.write_bytes(content)
    most = 1000 if content[:1] == b" " else 2**20
    with pytest.raises(UnreadableError) as caught:
        read_json(file, most)
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


def test_half_a_character_is_written_as_json_escapes_it(tmp_path):
    """Names in other programs' files may hold lone surrogates; found by `make hostile`."""
    content = {"a\ud800": "é\udcff"}
    write_json(tmp_path / "a.json", content)
    assert json.loads((tmp_path / "a.json").read_bytes()) == content
