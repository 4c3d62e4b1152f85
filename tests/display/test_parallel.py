"""Parallel coordinates and the other plots of sweeps: valid SVG that shows every item."""

from xml.etree import ElementTree

import pytest

from jaxtune.display.parallel import Column, dots, parallel, shares, spreads

LR = Column("lr", (1e-4, 1e-3, 1e-2), log=True)
NAME = Column("name", ("a", "<b>", None))
LOSS = Column("loss", (2.0, 1.0, 3.0))
TITLES = ("0: one", "1: two", "2: three")


def found(svg: str, kind: str) -> list[ElementTree.Element]:
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return list(root.iter(f"{{http://www.w3.org/2000/svg}}{kind}"))


def test_a_line_per_item_which_skips_axes_without_a_value():
    svg = parallel([LR, NAME, LOSS], [0.5, 0.0, 1.0], TITLES)
    lines = found(svg, "polyline")
    assert [len(line.get("points").split()) for line in lines] == [2, 3, 3]  # the best one last
    assert [each.text for each in found(svg, "title")] == ["2: three", "0: one", "1: two"]
    assert "&lt;b&gt;" in svg


def test_a_logarithmic_axis_has_equal_steps():
    places = [LR.place(value) for value in LR.values]
    assert places[1] - places[0] == pytest.approx(places[2] - places[1])


def test_dots_leave_out_items_without_a_value():
    assert len(found(dots(NAME, LOSS, TITLES), "circle")) == 2
    assert len(found(dots(LR, LOSS, TITLES), "circle")) == 3


def test_bars_and_intervals():
    bars = found(shares({"lr": 0.75, "seed": 0.0}, "importance"), "rect")
    assert [float(bar.get("width")) for bar in bars] == [270.0, 1.0]
    svg = spreads([("lr=1", [1.0, 3.0], (0.5, 3.5))], "loss")
    assert len(found(svg, "circle")) == 2 and len(found(svg, "rect")) == 1


def test_one_value_and_truths_have_axes_too():
    single = Column("flag", (True, True, False))
    assert single.choices == ("True", "False")
    assert found(dots(Column("x", (1, 1, 1)), LOSS, TITLES), "circle")
