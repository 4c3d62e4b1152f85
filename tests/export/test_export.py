"""What was tuned leaves: written, loaded afresh, compared; and what is damaged is found out."""

import json
import os
from dataclasses import replace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxtune
from jaxtune import tree
from jaxtune.adapters import lora
from jaxtune.assembly.assemble import Assembly
from jaxtune.checkpoint.formats.safetensors import CheckpointError
from jaxtune.config import load as configs
from jaxtune.display.progress import Quiet
from jaxtune.export import places, reference, verify, write
from jaxtune.export.places import Wanted
from jaxtune.export.tuned import Tuned
from jaxtune.export.verify import LIMITS
from jaxtune.export.write import Unverified, export, written
from tests import pictured
from tests.reference import CASES

FLOAT32 = LIMITS["float32"]


def tuned(directory, adapted=True, **changes) -> Tuned:
    """A base with adapters that do something, whatever a run of it would have learnt."""
    sections = {"model": {"path": str(directory)}, "data": {"source": "rows.jsonl"}} | changes
    config = configs.parse(sections)
    assembly = Assembly(config, directory, "2026-11-21")
    model, variables = assembly.model()

    def learnt(adapter, number):
        key = jax.random.fold_in(jax.random.key(1), number)
        b = 0.1 * jax.random.normal(key, adapter.b.shape)
        return adapter.replace(b=jax.device_put(b, adapter.b.sharding))

    made = lora.adapters(variables)
    made = {path: learnt(each, number) for number, (path, each) in enumerate(made.items())}
    variables |= {"lora": tree.unflatten(made)} if made else {}
    return Tuned(assembly, model, variables, "float32", step=7)


@pytest.fixture(scope="module")
def given(base):
    return verify.random_rows(jaxtune.load(base)[0], count=2, new=4)


@pytest.fixture
def adapter(tmp_path):
    return Wanted(tmp_path / "adapter")


@pytest.fixture
def merged(tmp_path):
    return Wanted(tmp_path / "merged", merged=True, dtype="float16")


def names(directory):
    return sorted(each.name for each in directory.iterdir())


def test_an_adapter_and_what_was_measured(base, given, adapter, tmp_path):
    said = []
    progress = Quiet()
    progress.say = said.append
    found = written(tuned(base), adapter, given, progress)
    found.check()
    assert names(tmp_path) == ["adapter"] and found.path == adapter.target
    report = json.loads((adapter.target / "export.json").read_text())
    assert report == found.report and report["kept"] and report["step"] == 7
    # The same program on the same numbers.
    assert report["comparison"]["logits"] == 0 and report["comparison"]["limit"] == FLOAT32
    assert report["comparison"]["alike"] == report["comparison"]["answers"] == 2
    file = adapter.target / "adapter_model.safetensors"
    assert report["files"][file.name]["bytes"] == file.stat().st_size
    assert said[0].startswith("verified: loaded afresh, logits within 0.0e+00")


@pytest.mark.slow
def test_a_merged_model_is_what_rounding_makes_of_it(base, given, merged, record_property):
    found = written(tuned(base), merged, given, Quiet())
    assert found.report["comparison"]["logits"] <= FLOAT32
    (moved,) = found.report["merging"].values()
    # 11 bits: a weight's rounding is 5e-4 at most, and a logit is made with thousands.
    assert 1e-5 < moved["logits"] < 2e-2 and moved["kl"] < 1e-3
    record_property("float16", moved["logits"])


def damaged(file, change):
    """Edit a file of tensors."""
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


def turned(tensors, name):
    """A matrix that somebody wrote by columns, under the right shape."""
    [key] = [key for key in tensors if name in key]
    tensors[key] = np.ascontiguousarray(tensors[key].T).reshape(tensors[key].shape)


def without(tensors, part):
    for key in [key for key in tensors if part in key]:
        del tensors[key]


def nothing(tensors):
    for key in tensors:
        tensors[key] = np.zeros_like(tensors[key])


def alpha(directory):
    file = directory / "adapter_config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"lora_alpha": 2 * content["lora_alpha"]}))


ADAPTER = {
    "transposed": lambda d: damaged(
        d / "adapter_model.safetensors", lambda t: turned(t, "layers.1.self_attn.q_proj.lora_A")
    ),
    "alpha": alpha,
    "missing": lambda d: damaged(
        d / "adapter_model.safetensors", lambda t: without(t, "layers.1.")
    ),
    "zeros": lambda d: damaged(d / "adapter_model.safetensors", nothing),
    "truncated": lambda d: os.truncate(d / "adapter_model.safetensors", 9000),
}
MERGED = {
    "transposed": lambda d: damaged(
        d / "model.safetensors", lambda t: turned(t, "layers.1.self_attn.k_proj.weight")
    ),
    "missing": lambda d: damaged(d / "model.safetensors", lambda t: without(t, "layers.1.mlp")),
    "zeros": lambda d: damaged(d / "model.safetensors", nothing),
    "truncated": lambda d: os.truncate(d / "model.safetensors", 9000),
}


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
    found = written(tuned(base), adapter, given, Quiet())
    assert found.problem and not found.report["kept"]
    assert names(tmp_path) == ["adapter.failed"]
    assert json.loads((found.path / "export.json").read_text())["problem"] == found.problem
    with pytest.raises(Unverified, match=r"it stays, for a look at it, as .*adapter\.failed"):
        found.check()


@pytest.mark.slow
@pytest.mark.parametrize("damage", MERGED)
def test_a_damaged_model_is_found_out(damage, base, given, merged, tmp_path, monkeypatch):
    sabotaged(monkeypatch, MERGED[damage])
    found = written(tuned(base), merged, given, Quiet())
    assert found.problem and names(tmp_path) == ["merged.failed"]


@pytest.mark.slow
@pytest.mark.parametrize("damage", ADAPTER)
def test_an_adapter_damaged_later_is_refused(damage, base, given, adapter):
    written(tuned(base), adapter, given, Quiet()).check()
    model, variables = jaxtune.load(base)
    jaxtune.load_adapter(model, variables, adapter.target)
    ADAPTER[damage](adapter.target)
    with pytest.raises(CheckpointError, match="is not the file that was verified"):
        jaxtune.load_adapter(model, variables, adapter.target)


@pytest.mark.slow
def test_what_fails_leaves_what_is_there(base, given, adapter, tmp_path, monkeypatch):
    written(tuned(base), adapter, given, Quiet()).check()
    before = (adapter.target / "adapter_model.safetensors").read_bytes()
    sabotaged(monkeypatch, alpha)
    again = replace(adapter, overwrite=True)
    assert [written(tuned(base), again, given, Quiet()).path.name for _ in range(2)] == [
        "adapter.failed", "adapter.failed-2",
    ]  # fmt: skip
    assert (adapter.target / "adapter_model.safetensors").read_bytes() == before
    assert names(tmp_path) == ["adapter", "adapter.failed", "adapter.failed-2"]


@pytest.mark.slow
def test_a_full_disk_and_what_a_killed_process_left(base, given, adapter, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(export, "save", lambda *_: os.write(os.open("/dev/full", os.O_WRONLY), b"1"))
        with pytest.raises(OSError, match="No space left"):
            written(tuned(base), adapter, given, Quiet())
    assert names(tmp_path) == []
    jaxtune.save_adapter(tuned(base).variables, tmp_path / "adapter.unverified", base)
    (tmp_path / "adapter.unverified/adapter_model.safetensors").write_bytes(b"half")
    written(tuned(base), adapter, given, Quiet()).check()
    assert names(tmp_path) == ["adapter"]


def test_a_kill_while_verifying_leaves_no_final_name(base, given, adapter, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(write, "verify_files", killed)
        with pytest.raises(Killed):
            written(tuned(base), adapter, given, Quiet())
    assert names(tmp_path) == ["adapter.unverified"]
    written(tuned(base), adapter, given, Quiet()).check()
    assert names(tmp_path) == ["adapter"]


def test_what_is_there_is_not_overwritten_unasked(adapter, tmp_path):
    adapter.target.mkdir()
    (adapter.target / "adapter_config.json").touch()
    with pytest.raises(ValueError, match="is there already: --overwrite replaces it, --to names"):
        places.refuse_what_is_there(adapter)
    places.refuse_what_is_there(replace(adapter, overwrite=True))
    (adapter.target / "adapter_config.json").rename(adapter.target / "letters.txt")
    with pytest.raises(CheckpointError, match="does not look like a checkpoint"):
        places.refuse_what_is_there(replace(adapter, overwrite=True))


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["int8", "nf4"])
def test_both_ways_to_merge_onto_a_quantised_base_are_measured(quant, base, given, tmp_path):
    for into in ("original", "dequantised"):
        wanted = Wanted(tmp_path / into, merged=True, dtype="float32", into=into)
        run = tuned(base, model={"path": str(base), "quant": quant})
        found = written(run, wanted, given, Quiet())
        found.check()
        moved = found.report["merging"]
        assert moved.keys() == {"original", "dequantised"}
        # Into what the codes stand for, nothing is lost.
        assert moved["dequantised"]["logits"] < FLOAT32 < moved["original"]["logits"]
        assert found.report["comparison"]["logits"] <= FLOAT32


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{"init": "pissa"}, {"variant": "dora"}, {"variant": "rslora", "targets": "attention"}],
)
def test_every_kind_of_adapter(changes, base, given, adapter, here):
    run = tuned(base, trainable=changes)
    found = written(run, replace(adapter, outside=True), given, Quiet())
    found.check()
    assert found.report["reference"]["logits"] <= FLOAT32


@pytest.fixture
def here(monkeypatch):
    """The other process's work in this one, which has its libraries already."""
    monkeypatch.setattr(reference, "_run", reference.main)


def check_outside(run, rows, place, record_property):
    """The adapter, and the model with it merged, are what they are here under the reference."""
    for wanted in (
        Wanted(place / "adapter", outside=True),
        Wanted(place / "merged", merged=True, dtype="float16", outside=True),
    ):
        found = written(run, wanted, rows, Quiet())
        found.check()
        record_property(wanted.target.name, found.report["reference"]["logits"])


@pytest.mark.slow
@pytest.mark.parametrize("name", {case.config: name for name, case in CASES.items()}.values())
def test_every_family_under_transformers_and_peft(name, pair, here, tmp_path, record_property):
    directory = pair(name).directory
    run = tuned(directory)
    rows = verify.random_rows(run.model, count=2, length=CASES[name].length - 8, new=4)
    check_outside(run, rows, tmp_path, record_property)


@pytest.mark.slow
@pytest.mark.parametrize("name", pictured.TEXTS)
def test_paligemma_under_transformers_and_peft(name, here, tmp_path, record_property):
    pictured.make(name, tmp_path / "base")
    run = tuned(tmp_path / "base")
    rows = verify.random_rows(run.model, count=2, length=12, new=4)
    check_outside(run, rows, tmp_path, record_property)


@pytest.mark.slow
def test_paligemma_as_npz(tmp_path, monkeypatch):
    monkeypatch.setitem(pictured.TOWER, "image_size", 56)  # an .npz tells of whole patches alone
    pictured.make("paligemma", tmp_path / "base")
    run = tuned(tmp_path / "base")
    rows = verify.random_rows(run.model, count=2, length=12, new=4)
    wanted = Wanted(tmp_path / "tuned.npz", merged=True, dtype="float32")
    found = written(run, wanted, rows, Quiet())
    found.check()
    assert names(tmp_path) == ["base", "tuned.export.json", "tuned.npz"]
    assert [*found.report["files"]] == ["tuned.npz"]


@pytest.mark.slow
def test_another_process_runs_transformers(base, given, adapter):
    found = written(tuned(base), replace(adapter, outside=True), given, Quiet())
    assert found.report["reference"]["logits"] <= FLOAT32
    assert found.report["reference"]["alike"] == 2


def test_what_transformers_cannot_be_asked(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"transformers reads no \.npz such as"):
        reference.check(tmp_path / "x.npz")
    monkeypatch.setattr(reference.importlib.util, "find_spec", lambda name: name != "peft" or None)
    with pytest.raises(ValueError, match="peft cannot be imported here: pip install peft"):
        reference.check(None)
