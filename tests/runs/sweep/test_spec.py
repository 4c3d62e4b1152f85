"""Sweep files: what they may say, and the one message that ends a bad one."""

import pytest

pytest.importorskip("optuna")

from jaxtune.config.fields import ConfigError
from jaxtune.runs.sweep.space import log
from jaxtune.runs.sweep.spec import Spec, SweepError, read
from tests.runs.sweep.studies import GRID, config, spec


def test_defaults():
    found = spec()
    assert (found.sampler, found.trials, found.pruner) == ("grid", 6, None)
    assert (found.metric, found.higher) == ("loss", False)
    assert spec({"optim.lr": log(1e-5, 1e-2)}, trials=3).sampler == "tpe"


def test_the_best_checkpoint_of_a_trial_is_by_the_metric():
    base = config(eval={"holdout": 8, "answers": 4})
    found = spec(base=base, metric="exact")
    assert found.higher and found.config.checkpoint.metric == "exact"


@pytest.mark.parametrize(
    "more, message",
    [
        ({"tirals": 3}, r"no setting 'tirals' \(did you mean trials\?\)"),
        ({"sampler": "tep"}, r"sampler: found 'tep' \(did you mean tpe\?\), expected one of grid"),
        ({"sampler": 3}, "sampler: found 3, expected one of grid"),
        ({"pruner": "medain"}, r"pruner: found 'medain' \(did you mean median\?\)"),
        ({"sampler": "tpe"}, "trials: is required with the sampler tpe"),
        ({"sampler": "tpe", "trials": 0}, "trials: found 0, expected a whole number from 1"),
        ({"trials": 5}, "trials: found 5, but the grid has 6 points"),
        ({"seed": -1}, "seed: found -1, expected a whole number"),
        ({"metric": "bleu"}, "metric: nothing computes 'bleu'.*: exact"),
        ({"metric": "exact"}, r"exact is a metric of answers, and eval\.answers is 0"),
    ],
)
def test_a_bad_sweep_ends_in_one_message(more, message):
    with pytest.raises(SweepError, match=message):
        spec(**more)


@pytest.mark.parametrize(
    "changes, more, message",
    [
        ({"eval": {}}, {}, "loss is measured on held-out rows, and the config has none"),
        ({"hub": {"repo": "me/x"}}, {}, "every trial would push to it"),
        (
            {"eval": {"holdout": 2, "every": None}},
            {"pruner": "median"},
            r"eval\.every is None, so that there is one at the end only",
        ),
    ],
)
def test_a_config_that_no_sweep_can_judge(changes, more, message):
    with pytest.raises(SweepError, match=message):
        spec(base=config(**changes), **more)


def test_an_objective_of_ones_own_needs_no_held_out_rows_and_takes_no_pruner():
    assert Spec.of(config(eval={}), {"space": GRID, "metric": "size"}, own_metric=True)
    with pytest.raises(SweepError, match="leave out the pruner"):
        Spec.of(config(), {"space": GRID, "pruner": "median"}, own_metric=True)


def test_files(tmp_path):
    file = tmp_path / "y.py"
    file.write_text("def get_sweep():\n    return dict(space={'seed': [0, 1]})\n")
    assert read(str(file)) == {"space": {"seed": [0, 1]}}
    file.write_text("def get_config():\n    return {}\n")
    with pytest.raises(ConfigError, match=r"y\.py has no get_sweep\(\)"):
        read(str(file))
    file.write_text("def get_sweep():\n    return dict(space=nope)\n")
    with pytest.raises(ConfigError, match=r"y\.py, line 2: NameError"):
        read(str(file))
