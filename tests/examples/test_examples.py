"""The examples run, and show what they say."""

import json

import numpy as np
import pytest

from examples import (
    distillation,
    learning_rate,
    own_task,
    select_rows,
    some_layers,
    two_adapters,
)


@pytest.mark.slow
def test_a_learning_rate_is_found(capsys):
    assert 1e-4 <= learning_rate.main(steps=30) <= 1e-1
    assert "try optim.lr=" in capsys.readouterr().out


@pytest.mark.slow
def test_two_adapters_are_trained_and_saved(tmp_path):
    losses = two_adapters.main(steps=10, directory=str(tmp_path))
    assert len(losses) == 2 and losses[0] != losses[1]
    for number in "01":
        config = json.loads((tmp_path / number / "adapter_config.json").read_text())
        assert config["r"] == 8


@pytest.mark.slow
def test_a_student_comes_nearer_to_its_teacher():
    found = distillation.main(steps=15)
    assert found[-1]["loss"] < 0.6 * found[0]["loss"]


@pytest.mark.slow
def test_only_the_layers_that_are_meant_move():
    found = some_layers.main(steps=10)
    assert found["norms"][-1] < found["norms"][0]
    assert found["attention"][-1] < found["attention"][0]
    moved = np.flatnonzero(found["layers"])
    assert moved.tolist() == [2, 3, 4]


@pytest.mark.slow
def test_rows_are_ranked_by_their_gain(capsys):
    gains = select_rows.main(warm=3, count=8)
    assert np.isfinite(gains).all() and len(set(gains.tolist())) == 8
    assert len(capsys.readouterr().out.splitlines()) == 4


@pytest.mark.slow
def test_a_task_outside_the_package_is_learnt(capsys):
    found = own_task.main()
    assert found["right"] > 0.5 and found["known"] > 0.5
    assert "right: 0.00 -> " in capsys.readouterr().out
