"""What stands in the way of an export is not overwritten, unasked or asked."""

import hashlib
import json
from dataclasses import replace

import pytest

from jaxtune.checkpoint.formats.safetensors import CheckpointError
from jaxtune.export import targets
from tests.export.exports import names


def written(directory, **settings):
    """The files of an export, with the report that lists them."""
    directory.mkdir(exist_ok=True)
    for name in ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json"):
        (directory / name).write_text(name)
    listed = {
        file.name: {"bytes": 1, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        for file in directory.iterdir()
        if file.name != "export.json"
    }
    report = {"files": listed, "tokenizer": ["tokenizer.json"]} | settings
    (directory / "export.json").write_text(json.dumps(report))
    (directory / "README.md").write_text("# Edited\n")
    return directory


def test_what_is_there_is_not_overwritten_unasked(adapter):
    written(adapter.target)
    with pytest.raises(ValueError, match="already exists: --overwrite replaces it, --to chooses"):
        targets.refuse_what_is_there(adapter)
    targets.refuse_what_is_there(replace(adapter, overwrite=True))
    (adapter.target / "letters.txt").touch()
    with pytest.raises(ValueError, match=r"letters\.txt, .* away, or choose another path"):
        targets.refuse_what_is_there(replace(adapter, overwrite=True))


def test_files_that_no_export_has_written(tmp_path):
    assert targets.foreign(tmp_path / "adapter") == []
    place = written(tmp_path / "adapter")
    assert targets.foreign(place) == []
    (place / "curve.svg").touch()
    (place / "notes").mkdir()
    (place / ".hidden").touch()
    assert targets.foreign(place) == [".hidden", "notes"]
    (place / "export.json").unlink()
    assert len(targets.foreign(place)) == 7  # all of them
    (place / "export.json").write_text('{"files": []}')
    with pytest.raises(CheckpointError, match="repair or remove it"):
        targets.foreign(place)
    (tmp_path / "merged").touch()
    assert targets.foreign(tmp_path / "merged") == ["merged"]
    with pytest.raises(ValueError, match=f"^{tmp_path} contains merged, .* name another --workdir"):
        targets.refuse_foreign(tmp_path / "merged", "name another --workdir")


def test_a_file_that_no_export_has_written(tmp_path):
    target = tmp_path / "merged.npz"
    (tmp_path / "merged.svg").touch()
    target.write_bytes(b"mine")
    assert targets.foreign(target) == ["merged.npz", "merged.svg"]
    report = {"files": {"merged.npz": {"bytes": 4, "sha256": ""}}}
    (tmp_path / "merged.export.json").write_text(json.dumps(report))
    (tmp_path / "merged.md").touch()
    assert targets.foreign(target) == []


@pytest.mark.parametrize("change", ["added", "edited", "no report", "damaged report"])
def test_what_an_export_has_not_written_so_is_kept(change, adapter, tmp_path):
    written(adapter.target)
    staged = written(tmp_path / "adapter.unverified")
    (staged / "README.md").unlink()
    if change == "added":
        (adapter.target / "notes").mkdir()
        (adapter.target / "notes/a.txt").write_text("mine")
    elif change == "edited":
        (adapter.target / "adapter_config.json").write_text("mine")
    elif change == "no report":
        (adapter.target / "export.json").unlink()
    else:
        (adapter.target / "export.json").write_text("[1]")
    before = {each.name for each in adapter.target.iterdir()}
    kept = targets.give_name(staged, adapter.target, replace(adapter, overwrite=True))
    assert kept == tmp_path / "adapter.replaced" and set(names(kept)) == before
    assert names(tmp_path) == ["adapter", "adapter.replaced"]
    assert (adapter.target / "README.md").read_text() == "# Edited\n"


def test_an_export_as_it_was_written_is_replaced(adapter, tmp_path):
    written(adapter.target)
    (adapter.target / "curve.svg").write_text("curve")
    staged = written(tmp_path / "adapter.unverified")
    assert targets.give_name(staged, adapter.target, replace(adapter, overwrite=True)) is None
    assert names(tmp_path) == ["adapter"]
    assert (adapter.target / "curve.svg").read_text() == "curve"  # the edited card shows it


def test_an_npz_that_was_edited_is_kept(tmp_path):
    wanted = targets.Wanted(tmp_path / "merged.npz", merged=True, overwrite=True)
    for name in ("merged", "merged.unverified"):
        (tmp_path / f"{name}.npz").write_text(name)
        (tmp_path / f"{name}.export.json").write_text(
            json.dumps({"files": {"merged.npz": {"bytes": 6, "sha256": ""}}})
        )
    kept = targets.give_name(tmp_path / "merged.unverified.npz", wanted.target, wanted)
    assert kept.name == "merged.replaced.npz" and kept.read_text() == "merged"
    assert names(tmp_path) == [
        "merged.export.json", "merged.npz", "merged.replaced.export.json", "merged.replaced.npz",
    ]  # fmt: skip


def test_where_an_export_is_staged(tmp_path):
    target, usual = tmp_path / "adapter", tmp_path / "adapter.unverified"
    assert targets.staging(target) == usual
    usual.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors", "tokenizer.model"):
        (usual / name).touch()  # left by a killed process
    assert targets.staging(target) == usual
    (usual / "letters.txt").touch()
    assert targets.staging(target).name == "adapter.unverified-2"
    assert targets.staging(tmp_path / "merged.npz").name == "merged.unverified.npz"


def test_what_is_there_is_known_by_its_report(adapter, merged):
    assert not targets.is_there(adapter, 7)
    written(adapter.target, step=7, into=None, dtype="float32")
    assert targets.is_there(adapter, 7) and not targets.is_there(adapter, 8)
    written(merged.target, step=7, into=None, dtype="bfloat16")
    assert not targets.is_there(merged, 7)
    assert not targets.is_there(replace(merged, dtype="float32"), 7)
    assert targets.is_there(replace(merged, dtype="bfloat16"), 7)
    assert not targets.is_there(replace(merged, dtype="bfloat16", into="original"), 7)
