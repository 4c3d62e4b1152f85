"""A run that plans itself: it refuses what does not fit, and compiles nothing twice."""

import logging
from dataclasses import replace

import jax
import pytest

from jaxtune.display.progress import Quiet
from jaxtune.runs.plan import ahead
from jaxtune.runs.plan.ahead import DoesNotFit, plan_ahead, try_largest


def given(planner, monkeypatch, limit: int | None):
    """The arguments of `plan_ahead`, on devices of so much memory."""
    target = replace(planner.target, limit_bytes=limit)
    monkeypatch.setattr(ahead, "at_hand", lambda: target)
    return planner.assembly, planner.rows, Quiet(), 0


@pytest.mark.slow
def test_a_run_that_cannot_fit_is_refused_with_the_change(planner, monkeypatch):
    peak = planner.plan({}).peak_bytes
    with pytest.raises(DoesNotFit) as refused:
        plan_ahead(*given(planner, monkeypatch, peak // 2**20 * 2**20))
    message = str(refused.value)
    assert message.startswith("this run does not fit: to train, a device would need")
    assert "  --config." in message or "use more devices" in message
    assert message.endswith("\npass --no-plan to train all the same")


@pytest.mark.slow
@pytest.mark.parametrize("limit", [None, 2**30])
def test_a_run_that_fits_is_planned(planner, monkeypatch, limit):
    assert plan_ahead(*given(planner, monkeypatch, limit)).fits is (limit and True)


@pytest.mark.slow
def test_the_largest_batch_is_tried_with_the_program_that_was_planned(planner, caplog):
    plan = planner.plan({})
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        try_largest(planner.assembly, planner.rows, plan)
    compiled = [each.getMessage() for each in caplog.records]
    assert any("Finished XLA compilation" in each for each in compiled)  # such as the zeros
    assert not any("Finished XLA compilation of jit(compiled_step)" in each for each in compiled)
