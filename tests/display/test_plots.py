"""Plots: XML that is well-formed, every point at its place, and inputs that leave no range."""

import math
from xml.etree import ElementTree

import pytest

from jaxtune.display import plots
from jaxtune.display.plots import Bar, Point, axis_of, bars, curves, scatter

NAMESPACE = "{http://www.w3.org/2000/svg}"


def parts(svg: str, name: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(svg).iter(NAMESPACE + name))


def words(svg: str) -> list[str]:
    return [each.text for each in parts(svg, "text")]


def dots(svg: str) -> list[tuple[float, float]]:
    """The centres of points, which alone say something on pointing."""
    found = [each for each in parts(svg, "circle") if each.find(f"{NAMESPACE}title") is not None]
    return [(float(each.get("cx")), float(each.get("cy"))) for each in found]


def field(svg: str) -> tuple[float, float, float, float]:
    """Where lines reach: from the left to the right, from the top to the foot."""
    lines = parts(svg, "line")
    across = [float(line.get(name)) for line in lines for name in ("x1", "x2")]
    down = [float(line.get(name)) for line in lines for name in ("y1", "y2")]
    return min(across), max(across), min(down), max(down)


@pytest.mark.parametrize("log", [False, True])
def test_points_stand_where_their_values_do(log):
    values = [(1, 100), (10, 10), (100, 1), (31.6, 7)]
    svg = scatter([Point(*each) for each in values], title="Prices", log=log)
    left, right, top, foot = field(svg)
    axis = axis_of([1, 100], log)
    for (truth, guess), (x, y) in zip(values, dots(svg), strict=True):
        # Places are written to a hundredth.
        assert x == pytest.approx(left + axis(truth) * (right - left), abs=0.02)
        assert y == pytest.approx(foot - axis(guess) * (foot - top), abs=0.02)
    [(x, y)] = dots(svg)[1:2]
    assert x - left == pytest.approx(foot - y, abs=0.02)  # on the diagonal, as it is right
    assert [line.get("stroke-dasharray") for line in parts(svg, "line")].count("5 4") == 1


def test_logarithms_of_values_are_spaced_evenly():
    axis = axis_of([1, 1000], log=True)
    assert [axis(each) for each in (1, 10, 100, 1000)] == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_kinds_have_colours_in_the_order_asked():
    points = [Point(1, 9, "poor", "a lamp"), Point(5, 5, "good"), Point(6, 6, "good")]
    svg = scatter(points, title="Prices", kinds=("good", "fair"), text="${:.0f}".format)
    good, fair, poor = plots.COLOURS[:3]
    assert [each.get("fill") for each in parts(svg, "circle")] == [
        *(good, fair, poor),
        *(poor, good, good),
    ]
    assert {"Prices", "truth", "guess", "good (2)", "fair (0)", "poor (1)", "$10"} <= {*words(svg)}
    assert parts(svg, "title")[0].text == "a lamp: truth $1, guess $9"


def test_any_text_is_well_formed():
    odd = "<b> & \"quoted\" \x00\x0b\ud800 'é' ]]>"
    svg = scatter([Point(1, 2, odd, odd)], title=odd, x_label=odd, y_label=odd)
    read = odd.replace("\x00\x0b\ud800", "\ufffd" * 3)
    assert words(svg)[0] == read
    assert parts(svg, "title")[0].text.startswith(read)
    assert words(bars([Bar(1, odd, odd)], title=odd, marks={odd: 1}))[0] == read
    svg.encode("utf-8")


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "values",
    [
        [(5, 5)],
        [(0, 0)],
        [(-3, -3)],
        [(0, 12), (12, 0)],
        [(7, 7), (7, 7)],
        [(1e-12, 1e12)],
        [(1e16, 1e16 + 2)],
        [(0.1, 0.1 + 2e-17)],
        [(-4, 9), (3, -1)],
        [(2e300, 1e-300)],
    ],
)
def test_points_lie_within_the_field(values, log):
    svg = scatter([Point(*each) for each in values], title="Prices", log=log)
    left, right, top, foot = field(svg)
    assert len(dots(svg)) == len(values)
    assert all(left <= x <= right and top <= y <= foot for x, y in dots(svg))
    assert right - left == pytest.approx(plots.SQUARE, abs=0.02)
    # The root's box holds all texts: none is beyond its right or its foot.
    _, _, width, height = map(float, ElementTree.fromstring(svg).get("viewBox").split())
    places = [each for each in parts(svg, "text") if each.get("x")]
    assert all(0 < float(each.get("x")) < width for each in places)
    assert all(0 < float(each.get("y")) < height for each in places)


def test_axes_reach_over_what_is_to_be_compared():
    points = [Point(10, 20), Point(30, 5)]
    other = scatter([*points, Point(700, 90)], title="Prices", log=True)
    svg = scatter(points, title="Prices", log=True, reach=(700, 90))
    assert dots(svg) == dots(other)[:2] != dots(scatter(points, title="Prices", log=True))
    heights = [
        [each.get("height") for each in parts(bars(items, title="Errors", reach=reach), "rect")]
        for items, reach in (([Bar(3), Bar(5)], (80,)), ([Bar(3), Bar(5), Bar(80)], ()))
    ]
    assert heights[0] == heights[1][:2]
    with pytest.raises(ValueError, match="cannot plot nan"):
        scatter(points, title="Prices", reach=(math.nan,))


def test_a_legend_wider_than_the_field_has_its_room():
    kinds = [f"kind {number} of a long name indeed" for number in range(5)]
    svg = scatter([Point(1, 2, kind) for kind in kinds], title="Prices")
    last = next(each for each in parts(svg, "text") if each.text == f"{kinds[-1]} (1)")
    width = float(ElementTree.fromstring(svg).get("width"))
    assert float(last.get("x")) + plots.LETTER * len(last.text) < width


def test_zeros_have_a_strip_on_a_logarithmic_axis():
    axis = axis_of([0, 3, 300], log=True)
    assert axis(0) == axis(-1) == plots.STRIP / 2 < axis(3)
    svg = scatter([Point(3, 0), Point(300, 20)], title="Prices", log=True)
    (_, low), (_, high) = dots(svg)
    assert high < low < field(svg)[3]
    assert "0" in words(svg) and "≤ 0" not in words(svg)
    assert "≤ 0" in words(scatter([Point(3, -5)], title="Prices", log=True))


@pytest.mark.parametrize(
    "values, log, ticks",
    [
        ([0, 97], False, [0, 20, 40, 60, 80, 100]),
        ([12, 2180], False, [0, 500, 1000, 1500, 2000, 2500]),
        ([0.1, 0.7], False, [0, 0.2, 0.4, 0.6, 0.8]),
        ([-1, 1], False, [-1, -0.5, 0, 0.5, 1]),
        ([990, 1010], False, [990, 995, 1000, 1005, 1010]),
        ([5, 5], False, [2, 3, 4, 5, 6, 7, 8]),
        ([0, 0], False, [-1, -0.5, 0, 0.5, 1]),
        ([3, 80], True, [2, 5, 10, 20, 50, 100]),
        ([1, 1], True, [1, 2]),
        ([0.02, 4000], True, [0.1, 1, 10, 100, 1000]),
        ([0, 0], True, [0, 1, 2]),
    ],
)
def test_ticks_are_round(values, log, ticks):
    assert list(axis_of(values, log).ticks) == ticks


def test_bars_are_sorted_and_as_high_as_their_errors():
    items = [Bar(30, "poor", "a lamp"), Bar(0, "good"), Bar(10, "good")]
    svg = bars(items, title="Errors", kinds=("good", "poor"), marks={"mean": 40 / 3})
    drawn = parts(svg, "rect")
    heights = [float(each.get("height")) for each in drawn]
    # An error of nothing is a pixel high; the ticks go to 30.
    assert heights == pytest.approx([1, plots.HIGH / 3, plots.HIGH], abs=0.02)
    assert [each.get("fill") for each in drawn] == [*plots.COLOURS[:1] * 2, plots.COLOURS[1]]
    assert [each[0].text for each in drawn] == ["0", "10", "a lamp: 30"]
    assert "mean 13.33333" in words(svg)


@pytest.mark.parametrize("count", [1, 2, 7, 999])
def test_every_item_has_its_bar(count):
    svg = bars([Bar(5.0)] * count, title="Errors", log=True, marks={"mean": 0.0, "median": 5.0})
    drawn = parts(svg, "rect")
    assert len(drawn) == count
    left, right, _, _ = field(svg)
    foot = plots.TOP + plots.HIGH
    ends = [float(each.get("x")) + float(each.get("width")) for each in drawn]
    assert left <= float(drawn[0].get("x")) and max(ends) <= right + 0.02
    assert {float(each.get("y")) + float(each.get("height")) for each in drawn} == {foot}
    assert "1" in words(svg)


def test_curves_go_through_their_values():
    train = [(step, 600 / step) for step in range(100, 601, 10)]
    held = [(0, 6.0), (300, 2.0), (600, 1.5)]
    svg = curves({"training": train, "held-out": held, "nothing": []}, title="Loss")
    left, right, top, foot = field(svg)
    across, up = axis_of([0, 600], False), axis_of([1, 6], False)
    drawn = parts(svg, "polyline")
    assert [each.get("stroke") for each in drawn] == list(plots.COLOURS[:2])
    for line, points in zip(drawn, (train, held), strict=True):
        assert line.get("fill") == "none"
        places = [tuple(map(float, each.split(","))) for each in line.get("points").split()]
        for (x, y), (step, value) in zip(places, points, strict=True):
            # Places are written to a hundredth.
            assert x == pytest.approx(left + across(step) * (right - left), abs=0.02)
            assert y == pytest.approx(foot - up(value) * (foot - top), abs=0.02)
    assert len(dots(svg)) == 3  # those of the line with few points
    assert parts(svg, "title")[0].text == "held-out: 6 at 0"
    assert {"Loss", "step", "loss", "training", "held-out", "0", "200", "600"} <= {*words(svg)}
    assert "nothing" not in words(svg)


@pytest.mark.parametrize("points", [[(0, 3.0)], [(1, 2.0)], [(1, 0.0), (2, 0.0)], [(7, -1.0)]])
def test_the_shortest_curves_lie_within_the_field(points):
    svg = curves({"training": points}, title="Loss")
    left, right, top, foot = field(svg)
    assert len(dots(svg)) == len(points)
    assert all(left <= x <= right and top <= y <= foot for x, y in dots(svg))
    below = [each.text for each in parts(svg, "text") if each.get("text-anchor") == "middle"]
    assert "0" in below and not any("." in text for text in below)  # there is no half of a step


def test_what_cannot_be_plotted():
    with pytest.raises(ValueError, match="nothing to plot"):
        curves({"training": []}, title="None")
    with pytest.raises(ValueError, match="cannot plot nan"):
        curves({"training": [(1, math.nan)]}, title="Odd")
    with pytest.raises(ValueError, match="nothing to plot"):
        scatter([], title="None")
    with pytest.raises(ValueError, match="nothing to plot"):
        bars([], title="None", marks={"mean": 1.0})
    for odd in (math.nan, math.inf):
        with pytest.raises(ValueError, match=f"cannot plot {odd}: expected finite numbers"):
            scatter([Point(1, odd)], title="Odd")
        with pytest.raises(ValueError, match=f"cannot plot {odd}: expected finite numbers"):
            bars([Bar(1)], title="Odd", marks={"mean": odd})
    with pytest.raises(ValueError, match="cannot plot an error of -1: expected 0 or more"):
        bars([Bar(-1)], title="Odd")


@pytest.mark.parametrize(
    "value, text",
    [(0, "0"), (1500, "1,500"), (0.05, "0.05"), (2e9, "2e+09"), (1e-5, "1e-05"), (-20, "-20")],
)
def test_numbers_as_written(value, text):
    assert plots.number(value) == text
