"""A folder lies complete in a store, or is not recognised."""

import pytest

from jaxtune.files.fetched import UPLOADING
from jaxtune.files.publish import publish, standing
from jaxtune.files.store import Store, StoreError
from tests.objects import WRITES, Killed, nth

NAMES = ("a.safetensors", "b.safetensors", "config.json", "export.json")


@pytest.fixture
def files(tmp_path):
    for name in NAMES:
        (tmp_path / name).write_text(f"new {name}")
    return tmp_path


def test_the_mark_arrives_last_and_stale_files_go(objects, files):
    there = Store("faulty://x/model")
    for name in ("config.json", "a.safetensors", "c.safetensors"):
        there.write(name, b"old")
    objects.requests.clear()
    publish(there, files, ["config.json", "a.safetensors", "c.safetensors"])
    assert {name: there.read(name).decode() for name in there.entries()} == {
        name: f"new {name}" for name in NAMES
    }
    written = [path for each, path in objects.requests if each == "put_file"]
    assert written[-1].endswith("config.json")


@pytest.mark.parametrize("number", range(1, 9))
def test_an_upload_that_is_cut_off_does_not_count(number, objects, files):
    there = Store("faulty://x/model")
    before = ["config.json", "c.safetensors"]
    for name in before:
        there.write(name, b"old")
    objects.requests.clear()
    objects.fault = nth(number, Killed)
    with pytest.raises(StoreError):
        publish(there, files, before)
    objects.fault = lambda request, path: None
    assert len([each for each, _ in objects.requests if each in WRITES]) >= number
    names = list(there.entries())
    untouched = {name: there.read(name) for name in names} == dict.fromkeys(before, b"old")
    assert UPLOADING in names or untouched or names == list(NAMES)
    publish(there, files, before)
    assert list(there.entries()) == list(NAMES)


def test_what_is_left_of_an_upload_is_known(objects, files):
    there = Store("faulty://x/model")
    there.write("mine.txt", b"")
    objects.fault = nth(4, Killed)
    with pytest.raises(StoreError):
        publish(there, files)
    objects.fault = lambda request, path: None
    assert standing(there) == ["mine.txt"]


@pytest.mark.parametrize("note", [b"[]", b"{", b'{"files": ["../y"]}'])
def test_a_note_of_another_is_not_believed(note, objects):
    there = Store("faulty://x/model")
    there.write(UPLOADING, note)
    with pytest.raises(StoreError, match="is not what jaxtune writes"):
        standing(there)
