"""Remote files become local copies, anew when they changed, and never in part."""

import errno

import pytest

from jaxtune.display.escapes import visible
from jaxtune.files import fetched
from jaxtune.files.fetched import UPLOADING, content, known_as, local, matches
from jaxtune.files.store import Store, StoreError
from tests.objects import Objects, nth


@pytest.fixture
def data(objects, machine):
    there = Store("faulty://data")
    there.write("rows.jsonl", b"one\n")
    there.write("model/config.json", b"{}")
    there.write("model/model.safetensors", b"weights")
    there.write("model/runs/old.json", b"{}")
    return there


def test_a_local_path_stays_what_it_is(tmp_path):
    assert local(tmp_path) == tmp_path


def test_a_file_is_copied_once_with_its_name_and_time(data):
    file = local("faulty://data/rows.jsonl")
    assert (file.name, file.read_bytes()) == ("rows.jsonl", b"one\n")
    assert file.stat().st_mtime_ns == data.entry("rows.jsonl").modified
    asked = len(Objects.requests)
    assert local("faulty://data/rows.jsonl") == file
    assert len(Objects.requests) == asked
    fetched.forget()
    assert local("faulty://data/rows.jsonl") == file
    assert "cat_file" not in [each for each, _ in Objects.requests[asked:]]


def test_a_changed_file_is_fetched_anew_and_the_former_one_stays(data):
    before = local("faulty://data/rows.jsonl")
    data.write("rows.jsonl", b"two\n")
    assert local("faulty://data/rows.jsonl") == before  # the same for the life of a process
    fetched.forget()
    now = local("faulty://data/rows.jsonl")
    assert (before.read_bytes(), now.read_bytes()) == (b"one\n", b"two\n")


def test_a_folder_is_copied_with_the_files_that_are_wanted(data):
    folder = local("faulty://data/model/", ["*.json", "*.safetensors"], ["*/*"])
    assert sorted(each.name for each in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert known_as(folder / "config.json") == "faulty://data/model/config.json"
    assert visible(f"{folder}/config.json: bad") == "faulty://data/model/config.json: bad"


def test_files_beside_one_come_along(data):
    file = local("faulty://data/model/model.safetensors", beside=["config*"])
    assert (file.parent / "config.json").is_file()


def test_what_is_not_there(data):
    with pytest.raises(FileNotFoundError, match="no such object or folder"):
        local("faulty://data/none")
    with pytest.raises(FileNotFoundError, match="no such object or folder; it holds config"):
        local("faulty://data/model", ["*.bin"])


def test_a_folder_whose_upload_has_not_ended_is_refused(data):
    data.write(f"model/{UPLOADING}", b'{"files": []}')
    with pytest.raises(StoreError, match="faulty://data/model is not complete"):
        local("faulty://data/model")


def test_names_that_lead_outside_are_refused(data):
    data._fs.store["/data/model/../../x"] = data._fs.store["/data/rows.jsonl"]
    with pytest.raises(StoreError, match="which is no relative path"):
        local("faulty://data/model")


def test_a_download_goes_on_where_it_stopped(data, monkeypatch):
    monkeypatch.setattr(fetched, "PIECE", 10)
    monkeypatch.setattr(fetched, "AT_ONCE", 1)
    whole = bytes(range(100))
    data.write("large", whole)
    Objects.fault = nth(4, PermissionError, ("cat_file",))
    with pytest.raises(StoreError):
        local("faulty://data/large")
    Objects.fault = lambda request, path: None
    Objects.requests.clear()
    assert local("faulty://data/large").read_bytes() == whole
    assert len([each for each, _ in Objects.requests if each == "cat_file"]) == 7


def test_an_object_that_changes_while_it_is_read_is_refused(data, monkeypatch):
    monkeypatch.setattr(fetched, "PIECE", 10)
    monkeypatch.setattr(fetched, "AT_ONCE", 1)
    data.write("large", bytes(30))

    def fault(request, path):
        if request == "cat_file":
            Objects.fault = lambda request, path: None
            data.write("large", bytes(range(30)))

    Objects.fault = fault
    with pytest.raises(StoreError, match="changed while it was downloaded"):
        local("faulty://data/large")
    assert local("faulty://data/large").read_bytes() == bytes(range(30))


def test_a_full_disk_is_one_message(data, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fetched.os, "fsync", full)
    with pytest.raises(StoreError, match=r"is full: 4 bytes are needed. .* JAXTUNE_CACHE"):
        local("faulty://data/rows.jsonl")


def test_patterns_match_objects(data):
    data.write("more/a.jsonl", b"")
    assert matches("faulty://data/*.jsonl") == ["faulty://data/rows.jsonl"]
    assert matches("faulty://data/more/*.jsonl") == ["faulty://data/more/a.jsonl"]
    with pytest.raises(StoreError, match="expected the name of a bucket"):
        matches("s3://*/x")


def test_the_beginning_of_an_object(data):
    assert content("faulty://data/rows.jsonl", 2) == b"on"
