"""The local directory of a remote workdir follows the store, and nothing of its own is lost."""

import json

import pytest

from jaxtune.display.errors import UserError
from jaxtune.files.store import Store
from jaxtune.workdir import lease, uploads
from jaxtune.workdir.mirror import bring, local_workdir
from jaxtune.workdir.uploads import in_use
from tests.objects import names

URL = "faulty://runs/x"


@pytest.fixture(autouse=True)
def quick(objects, machine, monkeypatch):
    monkeypatch.setattr(lease, "STALE", 0.0)
    monkeypatch.setattr(uploads, "POLL", 0.01)


def used(machine, name, step):
    """A run on a machine, which writes a checkpoint and files, and uploads them; its directory."""
    machine(name)
    workdir = local_workdir(URL)
    with in_use(workdir, "run"):
        folder = workdir / "checkpoints" / str(step)
        folder.mkdir(parents=True)
        (folder / "array").write_text(f"of {name}")
        (workdir / "run.json").write_text("{}")
        (workdir / "metrics.jsonl").write_text(f"until {step}\n")
    return workdir


def test_what_one_machine_writes_another_one_gets(machine):
    used(machine, "a", 3)
    machine("b")
    workdir = local_workdir(URL)
    assert bring(workdir, ("checkpoints",)) == []
    assert (workdir / "checkpoints/3/array").read_text() == "of a"
    assert (workdir / "metrics.jsonl").read_text() == "until 3\n"
    assert not (workdir / "leases").exists()


def test_a_checkpoint_removed_here_is_removed_there(machine):
    workdir = used(machine, "a", 3)
    for each in (workdir / "checkpoints/3/array", workdir / "checkpoints/3"):
        each.unlink() if each.is_file() else each.rmdir()
    used(machine, "a", 4)
    assert [name for name in names(URL) if name.startswith("ch")] == [
        "checkpoints.json",
        "checkpoints/4/array",
    ]


def test_a_checkpoint_that_is_not_listed_does_not_count(machine):
    used(machine, "a", 3)
    Store(URL).write("checkpoints/4/array", b"half")
    machine("b")
    workdir = local_workdir(URL)
    bring(workdir, ("checkpoints",))
    assert not (workdir / "checkpoints/4").exists()


def test_a_damaged_checkpoint_is_told_and_left_out(machine):
    used(machine, "a", 3)
    Store(URL).write("checkpoints/3/array", b"or a")
    machine("b")
    workdir = local_workdir(URL)
    (told,) = bring(workdir, ("checkpoints",))
    assert told == f"checkpoint 3 in {URL} is damaged: array is not what was uploaded"
    assert not (workdir / "checkpoints/3").exists()


def test_without_a_list_the_checkpoints_of_a_copied_workdir_count(machine):
    for name in ("run.json", "checkpoints/3/_CHECKPOINT_METADATA", "checkpoints/4/array"):
        Store(URL).write(name, b"{}")
    workdir = local_workdir(URL)
    bring(workdir, ("checkpoints",))
    assert [each.name for each in (workdir / "checkpoints").iterdir()] == ["3"]


def test_files_that_were_never_uploaded_are_kept_aside(machine, capsys):
    workdir = used(machine, "a", 3)
    (workdir / "metrics.jsonl").write_text("until 3\nand on, alone\n")
    used(machine, "b", 5)
    machine("a")
    with in_use(local_workdir(URL), "run"):
        assert (workdir / "metrics.jsonl").read_text() == "until 5\n"
        assert (workdir / "checkpoints/5/array").read_text() == "of b"
    told = capsys.readouterr().err
    assert "another machine went on with this run" in told
    kept = workdir.with_name(f"{workdir.name}.kept")
    assert (kept / "metrics.jsonl").read_text() == "until 3\nand on, alone\n"


def test_the_last_user_needs_nothing_from_the_store(machine, objects):
    workdir = used(machine, "a", 3)
    machine("a")
    objects.requests.clear()
    with in_use(local_workdir(URL), "run"):
        assert (workdir / "checkpoints/3/array").read_text() == "of a"
    read = [path for request, path in objects.requests if request == "cat_file"]
    assert {path.partition("/runs/x/")[2].partition("/")[0] for path in read} <= {
        "leases",
        "checkpoints.json",
    }


def test_names_that_lead_outside_are_not_followed(machine, tmp_path):
    used(machine, "a", 3)
    Store(URL)._fs.store["/runs/x/../../y"] = Store(URL)._fs.store["/runs/x/run.json"]
    listed = {"steps": {"3": {"../../../z": [2, ""]}}, "gone": []}
    Store(URL).write("checkpoints.json", json.dumps(listed).encode())
    machine("b")
    with pytest.raises(UserError, match=r"checkpoints.json is not what jaxtune wrote"):
        bring(local_workdir(URL), ("checkpoints",))
    assert not list(tmp_path.rglob("[yz]"))


@pytest.mark.parametrize("listed", [b"{", b"[]", b'{"steps": {}, "gone": ["../x"]}'])
def test_a_list_that_jaxtune_did_not_write_is_refused(listed, machine):
    Store(URL).write("run.json", b"{}")
    Store(URL).write("checkpoints.json", listed)
    with pytest.raises(UserError, match=r"checkpoints.json is not what jaxtune wrote \("):
        bring(local_workdir(URL), ("checkpoints",))
