"""Plots below each other in one picture."""

from xml.etree import ElementTree

from jaxtune.display import plots
from jaxtune.display.panels import SPACE, below


def test_each_plot_begins_where_the_one_before_ends():
    drawn = [plots.curves({"a": [(0, 1.0), (5, 2.0)]}, title=title) for title in ("one", "two")]
    whole = ElementTree.fromstring(below(drawn))
    panels = whole.findall(f"{{{SPACE}}}svg")
    heights = [int(panel.attrib["height"]) for panel in panels]
    assert [int(panel.attrib["y"]) for panel in panels] == [0, heights[0]]
    assert int(whole.attrib["height"]) == sum(heights)
    assert whole.attrib["aria-label"] == "one; two" and "ns0:" not in below(drawn)
    assert below(drawn[:1]) == drawn[0]
