"""Runs that train together beside the same runs alone."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest

from jaxtune import tree
from jaxtune.config import load as configs
from jaxtune.display.progress import Quiet
from jaxtune.runs import together as module
from jaxtune.runs.ends import Pruned, RunError
from jaxtune.runs.loop import Run
from jaxtune.runs.run import opened
from jaxtune.runs.signals import Stop, Stopped
from jaxtune.runs.sweep.executor import KeptBase
from jaxtune.runs.together import Together

CASES = {
    "lora": {},
    "qlora": {"model.quant": "nf4", "trainable.dropout": 0.1, "batch.buckets": [48, 56, 64]},
    "accumulated and packed": {
        "batch.accumulate": 2,
        "batch.packing": True,
        "batch.max_length": 96,
        "batch.buckets": [],
    },
}
MEMBERS = [
    {"optim.lr": 0.001},
    {"optim.lr": 0.003, "trainable.alpha": 8.0},
    {"optim.lr": 0.01, "trainable.rank": 4},
    {"optim.lr": 0.02, "optim.weight_decay": 0.1},
    {"optim.lr": 0.002, "seed": 1},
    {"optim.lr": 0.005, "schedule.warmup": 2},
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
        "batch.buckets": [64],
        "eval.holdout": 8,
        "eval.every": 2,
        "checkpoint.every": 4,
        "checkpoint.best": False,
        "log.every": 1,
    }


@pytest.fixture(scope="module")
def kept():
    return KeptBase()


def nested(flat: dict) -> dict:
    """Settings by dotted key as a config's dictionaries."""
    found: dict = {}
    for key, value in flat.items():
        section, _, name = key.rpartition(".")
        (found.setdefault(section, {}) if section else found)[name] = value
    return found


@contextlib.contextmanager
def running(values: dict, members: list[dict], place: Path, kept: KeptBase, reports=()):
    """The members' runs, opened on one base."""
    with contextlib.ExitStack() as stack:
        found = []
        for number, overrides in enumerate(members):
            run = opened(
                configs.parse(nested(values | overrides)),
                place / str(number),
                plan=False,
                progress=Quiet(),
                report=dict(reports).get(number),
                load_base=kept,
                cache=place.parent,
            )
            found.append(stack.enter_context(run))
        yield found


def metrics(run: Run) -> list[dict]:
    lines = (run.workdir.path / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def assert_alike(one: Run, other: Run) -> None:
    """Losses of all steps and evaluations are equal to 1e-5, weights of adapters to 1e-4."""
    for mine, theirs in zip(metrics(one), metrics(other), strict=True):
        assert mine.pop("kind") == theirs.pop("kind")
        assert mine == pytest.approx(theirs, rel=1e-5)
    mine, theirs = (tree.flatten(run.state.trainable) for run in (one, other))
    assert mine.keys() == theirs.keys()
    for path, leaf in mine.items():
        np.testing.assert_allclose(leaf, theirs[path], atol=1e-4, err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_eight_runs_train_together_as_they_do_alone(values, kept, tmp_path, case):
    values = values | CASES[case]
    with running(values, MEMBERS, tmp_path / "together", kept) as together:
        assert not list(Together(together, 0.0).train(Stop()))
        with running(values, MEMBERS, tmp_path / "alone", kept) as alone:
            for run, other in zip(together, alone, strict=True):
                other.train(Stop())
                assert_alike(run, other)
                for each in (run, other):
                    each.checkpoints.wait()
                assert run.checkpoints.steps == other.checkpoints.steps == [4]


@pytest.mark.slow
def test_runs_that_are_behind_catch_up_and_those_that_end_are_left_out(
    values, kept, tmp_path, monkeypatch
):
    sizes, step = [], module.population_step

    def counted(model, optimizer, population, batch, **given):
        sizes.append(len(population))
        return step(model, optimizer, population, batch, **given)

    monkeypatch.setattr(module, "population_step", counted)
    values = values | {"steps": 8}
    members = [{"optim.lr": lr} for lr in (0.001, 0.003, 1e5, 0.01)]
    place = tmp_path / "together"
    pruned = {1: lambda step, _: step == 4}
    ahead = {0: lambda *_: True}
    with running(values, members[:1], place, kept, ahead) as (first,), pytest.raises(Pruned):
        first.train(Stop())  # it leaves the run after step 2, as a killed process may
    with running(values, members, place, kept, pruned) as runs:
        ends = list(Together(runs, 0.0).train(Stop()))
        assert {runs.index(run): type(error) for run, error in ends} == {1: Pruned, 2: RunError}
        # Three catch up with the first, one of them diverges, and later another is pruned.
        assert sizes[:2] == [3, 3] and sizes[-3:] == [2] * 3 and len(sizes) == 8
        with running(values, [members[0], members[3]], tmp_path / "alone", kept) as alone:
            for run, other in zip((runs[0], runs[3]), alone, strict=True):
                other.train(Stop())
                assert_alike(run, other)


@pytest.mark.slow
def test_ended_runs_are_computed_on_where_a_smaller_program_would_not_pay(
    values, kept, tmp_path, monkeypatch
):
    monkeypatch.setattr(module.Population, "without", None)
    reports = {0: lambda *_: True}
    with running(values, MEMBERS[:2], tmp_path, kept, reports) as runs:
        ((run, error),) = Together(runs, 3600.0).train(Stop())
        assert run is runs[0] and error.step == 2
        assert runs[1].over


@pytest.mark.slow
def test_a_signal_saves_all_and_they_go_on(values, kept, tmp_path):
    """It arrives while an evaluation after step 2 is under way, so that step 3 is saved."""
    stop = Stop()

    def asking(*_):
        stop.asked = 2

    with (
        running(values, MEMBERS[:2], tmp_path / "stopped", kept, {0: asking}) as runs,
        pytest.raises(Stopped, match="SIGINT after step 3 of 4 of 2 runs, which are saved; run"),
    ):
        list(Together(runs, 0.0).train(stop))
    with running(values, MEMBERS[:2], tmp_path / "stopped", kept) as runs:
        assert [run.done for run in runs] == [3, 3]
        assert not list(Together(runs, 0.0).train(Stop()))
        with running(values, MEMBERS[:2], tmp_path / "whole", kept) as others:
            list(Together(others, 0.0).train(Stop()))
            for run, other in zip(runs, others, strict=True):
                assert metrics(run) == metrics(other)
