"""What the status line of a run says of its speed."""

import pytest

from jaxtune.runs import tally


def test_a_step_that_compiled_does_not_stretch_the_time_left(monkeypatch):
    clock = iter([0.0, 90.0, 91.0, 92.5, 93.5])
    monkeypatch.setattr(tally.time, "monotonic", lambda: next(clock))
    speed = tally.Speed()
    assert speed.seconds == 0 and speed.tokens == 0
    assert [speed.note(100) for _ in range(4)] == [90.0, 1.0, 1.5, 1.0]
    assert speed.seconds == pytest.approx(1.25) and speed.tokens == pytest.approx(400 / 93.5)
