"""Sweeps that train: trials are runs, and a sweep that is killed ends like one left alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("optuna")

import jaxtune
from jaxtune.assembly import weights
from jaxtune.config import load as configs
from jaxtune.config.training_sections import Model as Base
from jaxtune.display.progress import Quiet
from jaxtune.models import host
from jaxtune.runs.run import fit
from jaxtune.runs.sweep.executor import KeptBase
from jaxtune.runs.sweep.spec import SweepError

ROOT = Path(__file__).parents[3]
SWEEP = {"space": {"optim.lr": [0.003, 0.03], "seed": [0, 1]}}


@pytest.fixture(scope="module")
def values(base, rows):
    return {
        "steps": 4,
        "model": {"path": str(base)},
        "data": {"source": str(rows), "workers": 0},
        "trainable": {"rank": 2},
        "batch": {"rows": 4, "max_length": 64, "buckets": [64]},
        "eval": {"holdout": 8, "every": 2},
        "checkpoint": {"every": 1, "keep": 1},
        "log": {"every": 1},
        "generate": {"max_new_tokens": 4},
    }


def board(workdir: Path) -> list[dict]:
    """A leaderboard without the seconds, which no two sweeps share."""
    found = json.loads((workdir / "leaderboard.json").read_text())
    return [{name: each[name] for name in each if name != "seconds"} for each in found]


def start(file: Path, workdir: Path) -> subprocess.Popen:
    command = [sys.executable, "launch.py", "sweep", "--config", file, "--workdir", workdir]
    command += ["--together", "1"]  # which trials train together depends on who took them
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), *sys.path]))
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, env=env, cwd=ROOT, **quiet)


@pytest.mark.slow
def test_a_sweep_that_is_killed_and_continued_by_two_ends_like_one_left_alone(
    values, tmp_path, monkeypatch
):
    loads = []
    load = weights.load_base
    monkeypatch.setattr(weights, "load_base", lambda *given: (loads.append(given), load(*given))[1])
    alone = jaxtune.sweep(
        values, SWEEP["space"], workdir=tmp_path / "alone", together=1, progress=Quiet()
    )
    assert len(loads) == 1  # for four trials
    file, workdir = tmp_path / "config.py", tmp_path / "killed"
    functions = {"get_config": values, "get_sweep": SWEEP}
    lines = (f"def {name}():\n    return {each}\n" for name, each in functions.items())
    file.write_text("\n".join(lines))
    first = start(file, workdir)
    while not any(workdir.glob("trials/0001/checkpoints/[0-9]*")):
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    other = start(file, workdir)  # this process is the second one
    jaxtune.sweep(values, SWEEP["space"], workdir=workdir, together=1, progress=Quiet())
    _, told = other.communicate(timeout=300)
    assert other.returncode == 0, told
    assert board(workdir) == board(tmp_path / "alone")
    assert sorted(each["number"] for each in alone) == [0, 1, 2, 3]
    assert {each["state"] for each in alone} == {"complete"}
    for each in alone:
        trial, other = tmp_path / "alone" / each["directory"], workdir / each["directory"]
        metrics = [(place / "metrics.jsonl").read_bytes() for place in (trial, other)]
        assert metrics[0] == metrics[1]
        assert json.loads((other / "summary.json").read_text())["verified"]
        assert (other / "export/adapter/README.md").exists()


@pytest.mark.slow
def test_a_sweep_of_populations_ends_like_one_of_single_runs(values, tmp_path):
    space = {"optim.lr": [0.003, 0.01, 0.03], "trainable.rank": [1, 2]}
    boards = {}
    for together in (1, 3):
        place = tmp_path / str(together)
        boards[together] = jaxtune.sweep(
            values, space, workdir=place, together=together, progress=Quiet()
        )
    for one, other in zip(*boards.values(), strict=True):
        assert one["overrides"] == other["overrides"] and other["state"] == "complete"
        assert one["metric"] == pytest.approx(other["metric"], rel=1e-5)


@pytest.mark.slow
def test_a_trial_is_a_run_like_any_other(values, tmp_path):
    """Pruned by the sweep, it is trained to its end by itself."""
    space = {"optim.lr": [0.03, 0.02, 0.01, 0.005, 0.001]}
    found = jaxtune.sweep(
        values, space, pruner="median", workdir=tmp_path, together=1, progress=Quiet()
    )
    last = found[-1]
    assert (last["state"], last["steps"], last["number"]) == ("pruned", 2, 4)
    trial = tmp_path / last["directory"]
    assert not (trial / "summary.json").exists()
    config = configs.load(trial / "config.py")
    assert config.optim.lr == 0.001
    summary = fit(config, trial, progress=Quiet())
    assert summary["steps"] == 4 and summary["verified"]


@pytest.mark.slow
def test_all_trials_failed(values, tmp_path):
    with pytest.raises(SweepError, match=r"no trial of the sweep in .* trial 0: .*no such file"):
        jaxtune.sweep(
            {**values, "data": {"source": str(tmp_path / "none.jsonl")}},
            {"seed": [0]},
            workdir=tmp_path / "sweep",
            progress=Quiet(),
        )


def test_a_kept_base_is_loaded_again_where_the_config_wants_another(monkeypatch):
    loads = []
    monkeypatch.setattr(
        weights, "load_base", lambda *given: (loads.append(given), ("model", {"params": {}}))[1]
    )
    kept, one, other = KeptBase(), Base(path="model"), Base(path="other")
    first = kept(one, Path("a"), None)
    assert kept(one, Path("a"), None) == first and len(loads) == 1
    first[1].clear()  # what a run does with its variables is no other run's matter
    assert kept(one, Path("a"), None)[1] == {"params": {}}
    kept(other, Path("a"), None)
    kept.drop()
    kept(other, Path("a"), None)
    assert len(loads) == 3


def test_an_embedding_on_the_host_is_kept_there(pair, monkeypatch):
    made = pair("llama-linear")
    monkeypatch.setattr(weights, "load_base", lambda *_: (made.model, made.variables))
    given = Base(path="model", embedding="host")
    assert host.stays(KeptBase()(given, Path("a"), None)[1])
