"""An export gets its final name once it was verified, and what was there before stays."""

import json
import os
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from transformers import AutoTokenizer

import jaxtune
from jaxtune.checkpoint.formats.safetensors import CheckpointError
from jaxtune.display.progress import Quiet
from jaxtune.export import write
from jaxtune.export.write import Unverified, write_verified
from tests.data import made
from tests.export.exports import ADAPTER, MERGED, alpha, names, tuned


def test_an_adapter_and_what_was_measured(base, given, adapter, tmp_path):
    said = []
    progress = Quiet()
    progress.say = said.append
    found = write_verified(tuned(base), adapter, given, progress)
    found.check()
    assert names(tmp_path) == ["adapter"] and found.path == adapter.target
    report = json.loads((adapter.target / "export.json").read_text())
    assert report == found.report and report["kept"] and report["step"] == 7
    # a, b and scale of each of the 7 linear maps are read back as they were.
    assert report["same"]["arrays"] == 21 and report["same"]["positions"] > 0
    assert report["comparison"] is None
    file = adapter.target / "adapter_model.safetensors"
    assert report["files"][file.name]["bytes"] == file.stat().st_size
    assert re.match(
        r"verified: .* on random tokens: all 21 arrays are equal to those in memory", said[0]
    )


def said_by(run, wanted, rows):
    """What is printed of an export, which must be verified, and the export."""
    said = []
    progress = Quiet()
    progress.say = said.append
    found = write_verified(run, wanted, rows, progress)
    found.check()
    return said, found


def test_an_adapter_brings_the_tokenizer_of_its_run(base, given, adapter, tmp_path):
    (tmp_path / "other").mkdir()
    made.llama(tmp_path / "other")
    data = {"source": "rows.jsonl", "tokenizer": str(tmp_path / "other")}
    _, found = said_by(tuned(base, data=data), adapter, given)
    names = ["tokenizer.json", "tokenizer_config.json"]
    assert found.report["tokenizer"] == names and found.report["files"].keys() > set(names)
    for name in names:
        assert (adapter.target / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    theirs = AutoTokenizer.from_pretrained(adapter.target)
    assert theirs.bos_token == "<|begin_of_text|>"


@pytest.mark.slow
def test_a_merged_model_brings_the_tokenizer_of_its_run(base, given, merged, tmp_path):
    other = tmp_path / "other.model"
    made.train_sentencepiece(other)
    data = {"source": "rows.jsonl", "tokenizer": str(other)}
    _, found = said_by(tuned(base, data=data), merged, given)
    assert found.report["tokenizer"] == ["tokenizer.model", "tokenizer_config.json"]
    assert (merged.target / "tokenizer.model").read_bytes() == other.read_bytes()
    assert not (merged.target / "tokenizer.json").exists()
    generation = (base / "generation_config.json").read_bytes()
    assert (merged.target / "generation_config.json").read_bytes() == generation
    assert AutoTokenizer.from_pretrained(merged.target).encode("a", add_special_tokens=False)


def test_no_tokenizer_is_told(base, given, adapter, tmp_path):
    data = {"source": "rows.jsonl", "tokenizer": str(tmp_path / "nowhere")}
    said, found = said_by(tuned(base, data=data), adapter, given)
    (warning,) = found.report["warnings"]
    assert warning.startswith("it has no tokenizer") and f"warning: {warning}" in said


def test_files_of_others_stay_and_are_not_adopted(base, given, adapter):
    said_by(tuned(base), adapter, given)
    (adapter.target / "letters.txt").write_text("mine")
    _, found = said_by(tuned(base), replace(adapter, there=True), given)
    assert "letters.txt" not in found.report["files"]
    said, _ = said_by(tuned(base), replace(adapter, overwrite=True), given)
    kept = adapter.target.with_name("adapter.replaced")
    assert (kept / "letters.txt").read_text() == "mine"
    assert f"{adapter.target} was not as an export had written it: it is kept as {kept}" in said


def test_records_that_are_damaged_cost_no_export(base, given, adapter, tmp_path):
    run = tuned(base)
    run.workdir = tmp_path
    (tmp_path / "summary.json").write_text('{"steps": "many"}')
    said, _ = said_by(run, adapter, given)
    (warning,) = [line for line in said if line.startswith("warning: ")]
    assert "no model card was written" in warning and "it lacks 'tokens'" in warning
    assert not (adapter.target / "README.md").exists()


def test_weights_that_are_not_numbers_leave_nothing(base, given, adapter, tmp_path):
    run = tuned(base)
    run.variables["params"]["embed"] = jax.tree.map(
        lambda leaf: jnp.full_like(leaf, jnp.nan), run.variables["params"]["embed"]
    )
    with pytest.raises(ValueError, match="finite"):
        write_verified(run, adapter, given, Quiet())
    assert names(tmp_path) == []


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
