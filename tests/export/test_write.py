"""An export gets its final name once it was verified, and what was there before stays."""

import json
import os
import re
from dataclasses import replace

import pytest

import jaxtune
from jaxtune.checkpoint.formats.safetensors import CheckpointError
from jaxtune.display.progress import Quiet
from jaxtune.export import write
from jaxtune.export.write import Unverified, write_verified
from tests.export.exports import ADAPTER, FLOAT32, MERGED, alpha, names, tuned


def test_an_adapter_and_what_was_measured(base, given, adapter, tmp_path):
    said = []
    progress = Quiet()
    progress.say = said.append
    found = write_verified(tuned(base), adapter, given, progress)
    found.check()
    assert names(tmp_path) == ["adapter"] and found.path == adapter.target
    report = json.loads((adapter.target / "export.json").read_text())
    assert report == found.report and report["kept"] and report["step"] == 7
    # The same program on the same numbers.
    assert report["comparison"]["logits"] == 0 and report["comparison"]["limit"] == FLOAT32
    assert report["comparison"]["alike"] == report["comparison"]["answers"] == 2
    file = adapter.target / "adapter_model.safetensors"
    assert report["files"][file.name]["bytes"] == file.stat().st_size
    assert re.match(
        r"verified: .* on random tokens: logits differ by at most 0\.0e\+00 st", said[0]
    )


def sabotaged(monkeypatch, damage):
    """Files that are damaged before they are loaded afresh."""
    save = write.save

    def saved(tuned, wanted, place):
        save(tuned, wanted, place)
        damage(place)

    monkeypatch.setattr(write, "save", saved)


@pytest.mark.parametrize("damage", ADAPTER)
def test_a_damaged_adapter_is_found_out(damage, base, given, adapter, tmp_path, monkeypatch):
    sabotaged(monkeypatch, ADAPTER[damage])
    found = write_verified(tuned(base), adapter, given, Quiet())
    assert found.problem and not found.report["kept"]
    assert names(tmp_path) == ["adapter.failed"]
    assert json.loads((found.path / "export.json").read_text())["problem"] == found.problem
    with pytest.raises(Unverified, match=r"kept for inspection as .*adapter\.failed"):
        found.check()


@pytest.mark.slow
@pytest.mark.parametrize("damage", MERGED)
def test_a_damaged_model_is_found_out(damage, base, given, merged, tmp_path, monkeypatch):
    sabotaged(monkeypatch, MERGED[damage])
    found = write_verified(tuned(base), merged, given, Quiet())
    assert found.problem and names(tmp_path) == ["merged.failed"]


@pytest.mark.slow
@pytest.mark.parametrize("damage", ADAPTER)
def test_an_adapter_damaged_later_is_refused(damage, base, given, adapter):
    write_verified(tuned(base), adapter, given, Quiet()).check()
    model, variables = jaxtune.load(base)
    jaxtune.load_adapter(model, variables, adapter.target)
    ADAPTER[damage](adapter.target)
    with pytest.raises(CheckpointError, match="is not the file that was verified"):
        jaxtune.load_adapter(model, variables, adapter.target)


@pytest.mark.slow
def test_what_fails_leaves_what_is_there(base, given, adapter, tmp_path, monkeypatch):
    write_verified(tuned(base), adapter, given, Quiet()).check()
    before = (adapter.target / "adapter_model.safetensors").read_bytes()
    sabotaged(monkeypatch, alpha)
    again = replace(adapter, overwrite=True)
    assert [write_verified(tuned(base), again, given, Quiet()).path.name for _ in range(2)] == [
        "adapter.failed", "adapter.failed-2",
    ]  # fmt: skip
    assert (adapter.target / "adapter_model.safetensors").read_bytes() == before
    assert names(tmp_path) == ["adapter", "adapter.failed", "adapter.failed-2"]


@pytest.mark.slow
def test_a_full_disk_and_what_a_killed_process_left(base, given, adapter, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(write, "save", lambda *_: os.write(os.open("/dev/full", os.O_WRONLY), b"1"))
        with pytest.raises(OSError, match="No space left"):
            write_verified(tuned(base), adapter, given, Quiet())
    assert names(tmp_path) == []
    jaxtune.save_adapter(tuned(base).variables, tmp_path / "adapter.unverified", base)
    (tmp_path / "adapter.unverified/adapter_model.safetensors").write_bytes(b"half")
    write_verified(tuned(base), adapter, given, Quiet()).check()
    assert names(tmp_path) == ["adapter"]


def test_a_kill_while_verifying_leaves_no_final_name(base, given, adapter, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(write, "verify_files", killed)
        with pytest.raises(Killed):
            write_verified(tuned(base), adapter, given, Quiet())
    assert names(tmp_path) == ["adapter.unverified"]
    write_verified(tuned(base), adapter, given, Quiet()).check()
    assert names(tmp_path) == ["adapter"]
