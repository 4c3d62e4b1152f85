"""Trials that train together beside the same trials alone."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

pytest.importorskip("optuna")

from jaxtune.config import load as configs
from jaxtune.display.progress import Quiet
from jaxtune.runs.plan import targets
from jaxtune.runs.sweep import populations
from jaxtune.runs.sweep.executor import OneByOne, Trial
from jaxtune.runs.sweep.populations import Populations, fitting
from jaxtune.workdir.directory import claim

CASES = {
    "lora": {},
    "qlora": {"model": {"quant": "nf4"}, "trainable": {"dropout": 0.1}},
    "accumulated": {"batch": {"accumulate": 2}},
    "packed": {"batch": {"packing": True, "max_length": 96, "buckets": []}},
}
MEMBERS = [
    {"optim.lr": 0.001},
    {"optim.lr": 0.003, "trainable.alpha": 8.0},
    {"optim.lr": 0.01, "trainable.rank": 4},
    {"optim.lr": 0.02, "optim.weight_decay": 0.1},
    {"optim.lr": 0.002, "seed": 1},
    {"optim.lr": 0.005, "schedule.warmup": 2.0},
    {"optim.lr": 0.003, "optim.b1": 0.8, "seed": 2},
    {"optim.lr": 0.01, "optim.clip_norm": 0.1},
]


@pytest.fixture(scope="module")
def values(base, rows):
    return {
        "steps": 4,
        "model.path": str(base),
        "data.source": str(rows),
        "data.workers": 0,
        "trainable.rank": 2,
        "batch.rows": 4,
        "batch.max_length": 64,
        "eval.holdout": 8,
        "eval.every": 2,
        "checkpoint.every": 1,
        "log.every": 1,
    }


def nested(flat: dict) -> dict:
    found = {}
    for key, value in flat.items():
        section, _, name = key.rpartition(".")
        (found.setdefault(section, {}) if section else found)[name] = value
    return found


def trials(values: dict, members: list[dict], place: Path, report=lambda *_: False) -> list[Trial]:
    found = []
    for number, overrides in enumerate(members):
        directory = place / f"{number:04}"
        claim(directory)
        config = configs.parse(nested(values | overrides))
        title = f"trial {number}"
        found.append(
            Trial(number, config, directory, title, lambda *given, n=number: report(n, *given))
        )
    return found


def metrics(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def assert_alike(one: Path, other: Path) -> None:
    """Losses of all steps and evaluations are equal to 1e-5, weights of adapters to 1e-4."""
    for mine, theirs in zip(metrics(one), metrics(other), strict=True):
        assert mine.keys() == theirs.keys()
        assert (mine["step"], mine["kind"]) == (theirs["step"], theirs["kind"])
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    ours, others = (
        load_file(each / "export/adapter/adapter_model.safetensors") for each in (one, other)
    )
    assert ours.keys() == others.keys()
    for name, tensor in ours.items():
        np.testing.assert_allclose(tensor, others[name], atol=1e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_eight_trials_train_together_as_they_do_alone(values, tmp_path, case):
    flat = {f"{s}.{k}": v for s, changes in CASES[case].items() for k, v in changes.items()}
    together = trials(values | flat, MEMBERS, tmp_path / "together")
    alone = trials(values | flat, MEMBERS, tmp_path / "alone")
    found = list(Populations(Quiet(), most=8).run(together))
    assert [each.state for each in found] == ["complete"] * 8
    for each in OneByOne(Quiet()).run(alone):
        assert each.state == "complete"
    for one, other in zip(together, alone, strict=True):
        assert_alike(one.directory, other.directory)
        assert json.loads((one.directory / "summary.json").read_text())["verified"]


@pytest.mark.slow
def test_members_that_are_behind_catch_up_and_those_that_end_are_left_out(
    values, tmp_path, monkeypatch
):
    sizes = []
    step = populations.Together.__init__.__globals__["population_step"]

    def counted(model, optimizer, population, batch, **given):
        sizes.append(len(population))
        return step(model, optimizer, population, batch, **given)

    monkeypatch.setitem(populations.Together.__init__.__globals__, "population_step", counted)
    members = [{"optim.lr": lr} for lr in (0.001, 0.003, 1e30, 0.01)]
    values = values | {"steps": 6}
    # The first trial is stopped after step 2, as a killed process leaves it.
    early = trials(values, members[:1], tmp_path / "together", lambda *_: True)
    assert [each.state for each in OneByOne(Quiet()).run(early)] == ["pruned"]
    together = trials(
        values, members, tmp_path / "together", lambda number, step, _: number == 1 and step == 4
    )
    monkeypatch.setattr(populations, "fitting", lambda *given: fitting(*given))
    ends = {each.trial.number: each for each in Populations(Quiet(), most=8).run(together)}
    assert {number: each.state for number, each in ends.items()} == {
        0: "complete",
        1: "pruned",
        2: "failed",
        3: "complete",
    }
    assert "training diverged" in ends[2].reason and ends[1].steps == 4
    alone = trials(values, members, tmp_path / "alone")
    list(OneByOne(Quiet()).run([alone[0], alone[3]]))
    for number in (0, 3):
        assert_alike(together[number].directory, alone[number].directory)
    print(sizes)
