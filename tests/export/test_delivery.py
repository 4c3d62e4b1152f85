"""The export of a run waits for its turn, and what is in its way is told at the start."""

import threading

import pytest

from jaxtune.config import load as configs
from jaxtune.display.progress import Quiet
from jaxtune.export import delivery
from jaxtune.runs.run import fit
from jaxtune.workdir.directory import claim, locked_directory
from jaxtune.workdir.errors import WorkdirError
from tests.export.exports import names, tuned


def run_in(place, base, given, monkeypatch):
    """A run that is done, compared on these rows, and what is printed of its export."""
    run, said = tuned(base), []
    run.workdir = place
    monkeypatch.setattr(delivery.prove, "rows", lambda *_: given)
    progress = Quiet()
    progress.say = said.append
    return run, progress, said


@pytest.mark.slow
def test_a_run_waits_for_another_export(base, given, tmp_path, monkeypatch):
    run, progress, said = run_in(tmp_path, base, given, monkeypatch)
    free = threading.Event()
    monkeypatch.setattr(delivery.time, "sleep", lambda _: free.set())

    def other():
        with locked_directory(tmp_path / "export", "export"):
            held.set()
            free.wait(30)

    held = threading.Event()
    thread = threading.Thread(target=other)
    thread.start()
    held.wait(30)
    found = delivery.deliver(run, progress)
    thread.join()
    found.check()
    assert found.path == tmp_path / "export/adapter"
    assert said[0] == f"another export is using {tmp_path}/export: waiting up to 600 seconds"
    with locked_directory(tmp_path / "export", "export"):
        pass  # it is free again


def test_a_run_that_waited_in_vain_is_told_to_export(base, given, tmp_path, monkeypatch):
    run, progress, _ = run_in(tmp_path, base, given, monkeypatch)
    monkeypatch.setattr(delivery, "WAIT", 0.0)
    with (
        locked_directory(tmp_path / "export", "export"),
        pytest.raises(WorkdirError, match=r"done and saved, but not exported: .* export command"),
    ):
        delivery.deliver(run, progress)
    assert names(tmp_path / "export") == [".lock"]


def test_the_lock_is_held_while_files_are_written(base, given, tmp_path, monkeypatch):
    run, progress, _ = run_in(tmp_path, base, given, monkeypatch)

    def refused(*_):
        with (
            pytest.raises(WorkdirError, match="another export is using"),
            locked_directory(tmp_path / "export", "export"),
        ):
            raise AssertionError("two exports at once")
        return "as it should be"

    monkeypatch.setattr(delivery, "write_verified", refused)
    assert delivery.deliver(run, progress) == "as it should be"


@pytest.mark.parametrize("kind, name", [("lora", "adapter"), ("full", "merged")])
def test_what_is_in_the_way_is_told_before_anything_is_read(kind, name, tmp_path):
    config = configs.parse(
        {
            "model": {"path": str(tmp_path / "nowhere")},
            "data": {"source": "nowhere.jsonl"},
            "trainable": {"kind": kind},
        }
    )
    mine = tmp_path / "run/export" / name / "letters.txt"
    claim(tmp_path / "run")
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(ValueError, match=r"letters\.txt, .* away, or name another --workdir"):
        fit(config, tmp_path / "run", progress=Quiet())
    assert mine.read_text() == "mine"
