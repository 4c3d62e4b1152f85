"""The sweep command: its dry run, and the one message that ends a bad command."""

import json
import os
from pathlib import Path

import pytest

import launch

pytest.importorskip("optuna")

CONFIG = """
from jaxtune.runs.sweep.space import log

def get_config():
    return {values}

def get_sweep():
    return {sweep}
"""


@pytest.fixture
def command(base, rows, tmp_path, monkeypatch):
    """`command(sweep, …)` are the arguments of a sweep, of which the config file says how."""
    monkeypatch.chdir(tmp_path)
    values = {
        "steps": 4,
        "model": {"path": str(base)},
        "data": {"source": str(rows), "workers": 0},
        "batch": {"rows": 4, "max_length": 64, "buckets": [64]},
        "eval": {"holdout": 8, "every": 2},
    }

    def make(sweep, *more):
        Path("x.py").write_text(CONFIG.format(values=values, sweep=sweep))
        return ["sweep", "--config", "x.py", "--workdir", "w", *more]

    return make


def failure(capsys, arguments) -> str:
    assert launch.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and "Traceback" not in printed.err
    return printed.err


@pytest.mark.parametrize(
    "sweep, more, message",
    [
        ("dict(space={'optim.l': [1]})", (), "optim.l: no such field; did you mean"),
        ("dict(space={'optim.lr': []})", (), "optim.lr: found an empty list"),
        ("dict(space={'optim.name': log(1, 2)})", (), "this field is no number"),
        ("dict(space={'seed': [0]}, metric='bleu')", (), "nothing computes 'bleu'"),
        ("dict(space={'seed': [0]}, sampler='tep')", (), "did you mean tpe?"),
        ("3", (), "get_sweep() returned 3"),
        ("dict(space={'seed': [0]})", ("--sweep", "y.py"), "y.py: no such file"),
        ("dict(space={'seed': [0]})", ("--workdir", "gs://bucket/x"), "an object store does not"),
        ("dict(space={'seed': [0]})", ("--patience", "0"), "expected seconds from 1"),
        ("dict(space={'seed': [0]})", ("--config.hub.repo=me/x",), "every trial would push to it"),
    ],
)
def test_a_bad_sweep_ends_in_one_message_and_writes_nothing(
    sweep, more, message, command, capsys
):  # fmt: skip
    assert message in failure(capsys, command(sweep, *more))
    assert os.listdir() == ["x.py"]


def test_a_storage_that_does_not_answer(command, capsys):
    url = "postgresql://me:secret@127.0.0.1:1/sweeps"
    told = failure(capsys, command("dict(space={'seed': [0]})", "--storage", url))
    assert "does not answer" in told and "secret" not in told
    assert os.listdir() == ["x.py"]


@pytest.mark.slow
def test_a_dry_run_tells_the_trials_and_what_they_share(command, capsys):
    arguments = command(
        "dict(space={'optim.lr': [1e-3, 1e-2], 'trainable.rank': [2, 4]})", "--dry-run"
    )
    assert launch.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "4 trials by grid:" in printed and "0  lr=0.001 rank=2" in printed
    assert "loaded 1 time by one worker, for 4 trials" in printed
    assert "1 set to compile" in printed
    (group,) = json.loads(Path("w/sweep_plan.json").read_text())["groups"]
    assert group["trials"] == [0, 1, 2, 3] and group["together"] == 4 and group["steps"] == 4
    assert 0 < group["peak_bytes"] < group["together_bytes"]
    assert launch.main([*arguments, "--together", "1"]) == 0
    assert "2 sets to compile" in capsys.readouterr().out
    found = json.loads(Path("w/sweep_plan.json").read_text())["groups"]
    assert [(each["trials"], each["together"]) for each in found] == [([0, 2], 1), ([1, 3], 1)]
    assert not Path("w/trials").exists() and not Path("w/study.journal").exists()


@pytest.mark.slow
def test_a_dry_run_draws_trials_and_names_those_that_would_fail(command, capsys):
    arguments = command(
        "dict(space={'optim.lr': log(1e-4, 1e-2), 'batch.accumulate': [3]}, trials=2)", "--dry-run"
    )
    assert launch.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "2 trials by tpe, such as these, drawn at random:" in printed
    assert "optim.lr: 0.0001 to 0.01 (log)" in printed
    assert "trial 0 would fail" in printed and "0 sets to compile" in printed
