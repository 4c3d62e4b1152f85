"""Curves: every point kept, drawn where it is finite, and in a notebook drawn in one place."""

import re
import sys
import types
from xml.etree import ElementTree

import jax.numpy as jnp
import numpy as np
import pytest

import jaxtune
from jaxtune.cli.notebook import MOST_POINTS
from jaxtune.display.errors import UserError

HOSTILE = "<script>\x1b[31m&"


def points(svg: str) -> list[int]:
    """The number of points of each line."""
    found = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}polyline")
    return [len(line.get("points").split()) for line in found]


def test_a_curve_collects_and_draws_series():
    curve = jaxtune.Curve(title=HOSTILE, y_label="nats")
    assert curve._repr_svg_() is None and "no points" in curve._repr_html_()
    for step in range(1, 5):
        curve.add(step, loss=jnp.float32(1 / step))
    curve.add(4, held_out=0.5)
    assert curve.series["loss"][1] == (2.0, 0.5) and curve.series["held_out"] == [(4.0, 0.5)]
    assert points(curve._repr_svg_()) == [4, 1]
    assert "<script>" not in curve._repr_html_() and "nats" in curve._repr_html_()
    assert repr(curve) == (
        r"Curve <script>\x1b[31m&: loss 0.25 at step 4 (4 points), held_out 0.5 at step 4 (1 point)"
    )


def test_values_that_are_not_finite_are_kept_but_not_drawn():
    curve = jaxtune.Curve("loss")
    for step, value in enumerate([3.0, float("nan"), float("inf"), 1.0]):
        curve.add(step, loss=value)
    assert len(curve.series["loss"]) == 4 and points(curve._repr_svg_()) == [2]
    assert points(jaxtune.Curve("none")._repr_svg_() or "<svg/>") == []


def test_very_many_points_are_drawn_by_their_extremes():
    curve = jaxtune.Curve("loss")
    for step in range(20_000):
        curve.add(step, loss=5.0 if step == 7_777 else 1.0)
    (count,) = points(curve._repr_svg_())
    assert count <= MOST_POINTS
    heights = re.search('points="(.*?)"', curve._repr_svg_())[1].split()
    assert len({each.split(",")[1] for each in heights}) == 2  # the peak is still there


@pytest.mark.parametrize("value", ["high", "1.5", None, np.zeros(3), jnp.zeros((2, 2))])
def test_points_are_numbers(value):
    curve = jaxtune.Curve("loss")
    with pytest.raises(UserError, match=r"curve: loss is .*; expected a number"):
        curve.add(1, held_out=1.0, loss=value)
    with pytest.raises(UserError, match=r"curve: step is .*; expected a number"):
        curve.add(value, loss=1.0)
    assert curve.series == {}


class Shell:
    """As much of a kernel's shell as a curve uses: cells by number, and what happens after one."""

    kernel, execution_count = object(), 1

    def __init__(self):
        self.events, self.waiting, self.drawn = self, [], []

    def register(self, name, call):
        assert name == "post_run_cell"
        self.waiting.append(call)

    def unregister(self, name, call):
        self.waiting.remove(call)

    def display(self, curve, display_id):
        assert display_id is True
        place = len(self.drawn)
        self.drawn.append([repr(curve)])
        return types.SimpleNamespace(update=lambda again: self.drawn[place].append(repr(again)))

    def end_cell(self):
        self.execution_count += 1
        for call in list(self.waiting):
            call(None)


@pytest.fixture
def shell(monkeypatch):
    made = Shell()
    ipython = types.ModuleType("IPython")
    ipython.get_ipython, shown = lambda: made, types.ModuleType("IPython.display")
    shown.display = made.display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", shown)
    return made


def test_a_notebook_redraws_in_place_and_ends_with_the_last_point(shell):
    curve = jaxtune.Curve("loss")
    for step in range(1, 301):
        curve.add(step, loss=1.0)
    shell.end_cell()
    (drawn,) = shell.drawn
    assert "(1 point)" in drawn[0] and "(300 points)" in drawn[-1] and len(drawn) < 100
    assert shell.waiting == []
    curve.add(301, loss=1.0)  # in another cell, which gets a plot of its own
    shell.end_cell()
    assert len(shell.drawn) == 2 and shell.waiting == []


def test_a_terminal_is_not_drawn_on(shell):
    del Shell.kernel
    try:
        jaxtune.Curve("loss").add(1, loss=1.0)
    finally:
        Shell.kernel = object()
    assert shell.drawn == []
