"""Puts several SVG plots into one, below each other."""

from collections.abc import Sequence
from xml.etree import ElementTree

SPACE = "http://www.w3.org/2000/svg"


def below(plots: Sequence[str]) -> str:
    """Returns one SVG text that shows plots of `jaxtune.display.plots` from top to bottom."""
    if len(plots) == 1:
        return plots[0]
    ElementTree.register_namespace("", SPACE)
    panels = [ElementTree.fromstring(text) for text in plots]
    widest, height = max(int(each.attrib["width"]) for each in panels), 0
    whole = ElementTree.Element(f"{{{SPACE}}}svg")
    for panel in panels:
        panel.attrib["y"] = str(height)
        height += int(panel.attrib["height"])
        whole.append(panel)
    whole.attrib |= {
        "viewBox": f"0 0 {widest} {height}",
        "width": str(widest),
        "height": str(height),
        "role": "img",
        "aria-label": "; ".join(panel.attrib["aria-label"] for panel in panels),
    }
    return ElementTree.tostring(whole, encoding="unicode") + "\n"
