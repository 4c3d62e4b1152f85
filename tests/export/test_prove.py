"""Exports of every kind do what was tuned, here and under transformers and PEFT."""

import json
from dataclasses import replace

import pytest

from jaxtune.display.progress import Quiet
from jaxtune.export import prove, reference, verify
from jaxtune.export.targets import Wanted
from jaxtune.export.verify import Comparison
from jaxtune.export.write import write_verified
from tests import pictured
from tests.export.exports import FLOAT32, names, tuned
from tests.reference import CASES


@pytest.mark.slow
def test_a_merged_model_is_what_rounding_makes_of_it(base, given, merged, record_property):
    found = write_verified(tuned(base), merged, given, Quiet())
    assert found.report["comparison"]["logits"] <= FLOAT32
    (moved,) = found.report["merging"].values()
    # 11 bits: a weight's rounding is 5e-4 at most, and a logit is made with thousands.
    assert 1e-5 < moved["logits"] < 2e-2 and moved["kl"] < 1e-3
    record_property("float16", moved["logits"])


COMPARED = dict(logits=0.1, kl=0.1, agreement=0.9, positions=9, answers=8, ties=1, limit=1e-4)


@pytest.mark.parametrize(
    "alike, into, narrow, told",
    [
        (8, None, ["bfloat16"], []),
        (5, None, ["bfloat16"], ["merging in bfloat16 changed 3 of 8 answers; --merged float32"]),
        (7, None, [], []),  # a tie
        (5, None, [], ["merging changed 2 of 8 answers"]),
        (5, "dequantised", ["float16"], ["the dequantised weights in float16 changed 3 of 8"]),
        (5, "original", [], ["original weights changed 3 of 8 answers; --into dequantised keeps"]),
    ],
)
def test_answers_that_merging_changes_are_told_with_the_way_out(alike, into, narrow, told):
    found = list(prove._losses(Comparison(**COMPARED, alike=alike), into, narrow))
    assert [part in each for part, each in zip(told, found, strict=True)] == [True] * len(told)


@pytest.mark.slow
def test_a_merge_that_changes_answers_warns_everywhere(base, given, merged, monkeypatch, capsys):
    """Whatever the weights do: two of two answers count as changed here."""
    from jaxtune.display.progress import Progress

    of_both = verify.compared

    def compared(*args):
        found = of_both(*args)
        return replace(found, alike=0) if found.logits > FLOAT32 else found

    monkeypatch.setattr(prove, "compared", compared)
    write_verified(tuned(base), merged, given, Progress()).check()
    warning = "merging in float16 changed 2 of 2 answers; --merged float32 avoids its rounding"
    assert f"\nwarning: {warning}\n" in capsys.readouterr().out
    assert json.loads((merged.target / "export.json").read_text())["warnings"] == [warning]


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["int8", "nf4"])
def test_both_ways_to_merge_onto_a_quantised_base_are_measured(quant, base, given, tmp_path):
    for into in ("original", "dequantised"):
        wanted = Wanted(tmp_path / into, merged=True, dtype="float32", into=into)
        run = tuned(base, model={"path": str(base), "quant": quant})
        found = write_verified(run, wanted, given, Quiet())
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
    found = write_verified(run, replace(adapter, outside=True), given, Quiet())
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
        found = write_verified(run, wanted, rows, Quiet())
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
    found = write_verified(run, wanted, rows, Quiet())
    found.check()
    assert names(tmp_path) == ["base", "tuned.export.json", "tuned.npz"]
    assert [*found.report["files"]] == ["tuned.npz"]
