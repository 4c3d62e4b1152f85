"""Sweeps whose trials train together."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("optuna")

import jax
from peft import PeftModel
from transformers import AutoModelForCausalLM

import jaxtune
from jaxtune.config import load as configs
from jaxtune.display.errors import UserError
from jaxtune.display.progress import Progress, Quiet
from jaxtune.runs.plan import members as plan
from jaxtune.runs.plan.targets import at_hand
from jaxtune.runs.sweep import populations
from jaxtune.runs.sweep.executor import Trial
from jaxtune.runs.sweep.populations import Populations, fitting
from jaxtune.workdir.directory import claim
from tests import reference
from tests.runs.test_together import MEMBERS, nested, values  # noqa: F401 (a fixture)


def trials(given: dict, members: list[dict], place) -> list[Trial]:
    found = []
    for number, overrides in enumerate(members):
        directory = place / f"{number:04}"
        claim(directory)
        config = configs.parse(nested(given | overrides))
        found.append(Trial(number, config, directory, f"trial {number}", lambda *_: False))
    return found


@pytest.mark.slow
def test_eight_exported_members_have_our_logits_under_peft(values, base, tmp_path):  # noqa: F811
    made = trials(values | {"steps": 2}, MEMBERS, tmp_path)
    found = list(Populations(Quiet(), most=8).run(made))
    assert sorted(each.trial.number for each in found) == list(range(8))
    assert {(each.state, each.steps) for each in found} == {("complete", 2)}
    model, variables = jaxtune.load(base, "float32")
    tokens = np.random.default_rng(0).integers(3, 512, (2, 24), np.int32)
    apply, seen = jax.jit(model.apply), []
    for trial in made:
        place = trial.directory / "export" / "adapter"
        assert json.loads((trial.directory / "summary.json").read_text())["verified"]
        plain = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
        want = reference.logits(PeftModel.from_pretrained(plain, place).eval(), tokens)
        adapted = jaxtune.load_adapter(model, variables, place)
        got = np.asarray(apply(adapted, tokens))
        # float32, over three layers, as for any adapter
        assert np.abs(got - want).max() < 2e-5 * np.abs(want).max()
        seen.append(want)
    assert all(np.abs(one - other).max() > 1e-3 for one, other in itertools.pairwise(seen))


def test_trials_that_cannot_train_together_train_alone(values, tmp_path, monkeypatch):  # noqa: F811
    """Ranks that an optimiser's arrays do not allow, weights of the base, and a broken config."""
    alone = []

    def noted(self, trials):
        alone.extend(trial.number for trial in trials)
        return iter(())

    monkeypatch.setattr(populations.OneByOne, "run", noted)
    together = []
    monkeypatch.setattr(
        Populations,
        "_together",
        lambda self, trials, *_: together.append([each.number for each in trials]) or iter(()),
    )
    monkeypatch.setattr(populations, "fitting", lambda config, most, *_: plan.Members(2, 0, 0.0))
    made = trials(
        values,
        [
            {"optim.name": "adafactor", "trainable.rank": 2},
            {"optim.name": "adafactor", "trainable.rank": 4},
            {"trainable.rank": 2},
            {"trainable.rank": 4},
            {"trainable.kind": "attention", "trainable.rank": 8},
            {"trainable.rank": 2, "optim.lr": 0.5},
        ],
        tmp_path,
    )
    made.append(replace(made[0], number=6, config=UserError("two fields")))
    list(Populations(Quiet(), most=8).run(made))
    # Of each three that could train together, two fit.
    assert together == [[2, 5]]
    assert alone == [6, 0, 1, 2, 5, 3, 4]  # 2 and 5 once more, as the population left them


@pytest.mark.slow
def test_as_many_train_together_as_memory_allows(values, tmp_path, monkeypatch):  # noqa: F811
    config = configs.parse(nested(values | {"trainable.rank": 16}))
    whole = fitting(config, 6, False, tmp_path)
    assert whole.count == 6
    for fraction, count in ((0.999, 5), (0.0, 1)):
        limit = int(whole.peak_bytes * fraction)
        target = replace(at_hand(), limit_bytes=limit)
        monkeypatch.setattr(populations, "at_hand", lambda target=target: target)
        found = fitting(config, 6, False, tmp_path)
        assert found.count == count and (found.peak_bytes <= limit or count == 1)


@pytest.mark.slow
def test_trials_go_on_alone_where_memory_does_not_suffice(values, tmp_path, monkeypatch, capsys):  # noqa: F811
    def full(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr("jaxtune.runs.together.population_step", full)
    made = trials(values | {"steps": 1}, MEMBERS[:2], tmp_path)
    found = list(Populations(Progress(), most=8).run(made))
    assert [each.state for each in found] == ["complete"] * 2
    told = capsys.readouterr().out
    assert "memory does not suffice for 2 trials together: they go on alone" in told
