"""Runs that are lost, and starts that fail: what stops them, and what they leave alone."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import tree
from jaxtune.display.progress import Quiet
from jaxtune.evaluation import held_out
from jaxtune.runs import loop
from jaxtune.runs.ends import RunError
from jaxtune.runs.run import fit
from jaxtune.workdir.errors import WorkdirError
from tests.runs.conftest import STEPS


@pytest.mark.slow
@pytest.mark.parametrize(
    "later, problem",
    [
        (dict(gradient_norm=0.0), "step 7: the gradient has been zero for 3 steps"),
        (dict(loss=19.0), "step 24: the loss has stayed above 15 for 20 steps"),
        (dict(loss=0.0), "step 5: the loss is exactly 0"),
        (dict(loss=31.0), "step 5: training diverged"),
        (dict(gradient_norm=float("nan")), "step 5: training diverged"),
    ],
)
def test_what_counts_as_lost(later, problem, make, tmp_path, monkeypatch):
    """The measured values are changed from step 5 on; the first loss is 10."""
    real = loop.train_step

    def step(*arguments, **more):
        state, metrics = real(*arguments, **more)
        sound = dict(loss=10.0, gradient_norm=1.0)
        changed = sound | later if int(state.step) >= 5 else sound
        return state, metrics | {name: jnp.float32(value) for name, value in changed.items()}

    monkeypatch.setattr(loop, "train_step", step)
    config = make(("steps", 40), ("eval.holdout", 0), ("eval.every", None))
    with pytest.raises(RunError, match=problem):
        fit(config, tmp_path / "run", progress=Quiet())


@pytest.mark.slow
def test_a_held_out_loss_that_is_not_finite_names_its_rows(make, tmp_path, monkeypatch):
    lost = {"loss": jnp.float32(np.nan), "weight": jnp.float32(1)}
    monkeypatch.setattr(held_out, "eval_sums", lambda *_: lost)
    with pytest.raises(RunError, match=r"step 0: the held-out loss is nan for .*rows.jsonl:\d+"):
        fit(make(), tmp_path / "run", progress=Quiet())


@pytest.mark.parametrize("name", ["rates", "decays"])
def test_a_rule_of_the_optimiser_that_applies_to_no_leaf(name, make, tmp_path):
    config = make((f"optim.{name}", ((r"lora/layers/atn/.*", 0.5),)))
    with pytest.raises(tree.RuleError, match=rf"(?s)optim.{name}: .*lora/layers/atn.*matches no"):
        fit(config, tmp_path / "run", progress=Quiet())


def test_a_start_that_fails_does_not_own_its_directory(make, tmp_path):
    with pytest.raises(tree.RuleError):
        fit(make(("optim.rates", ((r"nothing", 0.5),))), tmp_path / "run", progress=Quiet())
    assert not (tmp_path / "run/config.json").exists()
    with pytest.raises(tree.RuleError, match="elsewhere"):  # the config may change: no step is done
        fit(make(("optim.rates", ((r"elsewhere", 2.0),))), tmp_path / "run", progress=Quiet())


@pytest.mark.slow
def test_changes_that_cannot_work_replace_nothing(make, whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole[0], workdir)
    before = (workdir / "config.json").read_bytes()
    impossible, other = make(("trainable.rank", 3)), make(("optim.lr", 0.01), ("steps", STEPS + 1))
    idle = make(("optim.lr", 0.01))
    with pytest.raises(ValueError, match="was saved with another config"):
        fit(impossible, workdir, accept_changes=True, progress=Quiet())
    with pytest.raises(WorkdirError, match=r"(?s)complete; no step .*0.01\nSet steps above 12"):
        fit(idle, workdir, accept_changes=True, progress=Quiet())
    assert (workdir / "config.json").read_bytes() == before
    with pytest.raises(WorkdirError, match=r"optim.lr: 0.03 -> 0.01"):
        fit(other, workdir, progress=Quiet())
    fit(other, workdir, accept_changes=True, progress=Quiet())
    assert (workdir / "config.1.json").read_bytes() == before
    assert json.loads((workdir / "config.json").read_bytes())["optim"]["lr"] == 0.01


@pytest.mark.slow
def test_the_loop_sends_nothing_to_the_device_but_batches(make, tmp_path, monkeypatch):
    """A computation of the host's own would wait for the step that was dispatched last."""
    run = loop.Run
    status, log = run._status, run._log

    def guarded(method):
        def call(*arguments):
            with jax.transfer_guard_host_to_device("disallow"):
                return method(*arguments)

        return call

    monkeypatch.setattr(run, "_status", guarded(status))
    monkeypatch.setattr(run, "_log", guarded(log))
    config = make(("steps", 2), ("eval.holdout", 0), ("eval.every", None), ("log.every", 1))
    fit(config, tmp_path / "run", progress=Quiet())
    rates = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    assert [line["lr"] for line in rates] == [0.03, 0.015]


@pytest.mark.slow
def test_the_host_runs_one_step_ahead(make, tmp_path, monkeypatch):
    """A slow step is no wait for the host: it dispatches the next one before it reads anything."""
    real, events = loop.train_step, []

    class Metric:
        def __init__(self, value, step):
            self.value, self.step = value, step

        def __float__(self):
            events.append(f"read {self.step}")
            return float(self.value)

    def step(*arguments, **more):
        state, metrics = real(*arguments, **more)
        number = 1 + sum(each.startswith("dispatch") for each in events)
        events.append(f"dispatch {number}")
        return state, {name: Metric(value, number) for name, value in metrics.items()}

    monkeypatch.setattr(loop, "train_step", step)
    apart = (("eval.holdout", 0), ("eval.every", None), ("log.every", 4), ("checkpoint.every", 4))
    fit(make(("steps", 4), *apart), tmp_path / "run", progress=Quiet())
    assert list(dict.fromkeys(events)) == [
        "dispatch 1", "dispatch 2", "read 1", "dispatch 3", "read 2", "dispatch 4", "read 3",
        "read 4",
    ]  # fmt: skip
