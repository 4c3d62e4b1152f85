"""SVG plots of many settings beside one result: parallel coordinates, and dots per setting."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from jaxtune.display.plots import (
    BOTTOM,
    COLOURS,
    FONT,
    INK,
    NOT_XML,
    SIZE,
    TITLE_SIZE,
    TOP,
    Axis,
    axis_of,
    number,
)

HIGH, BETWEEN, SIDE = 300, 170, 90  # pixels: height, between two axes, beside the outer ones
WORST, BEST = (0xC8, 0xC8, 0xC8), (0x1B, 0x5E, 0x9E)  # colours of results
LONGEST = 18  # letters of a label


@dataclass(frozen=True)
class Column:
    """A setting that every line or dot may have a value of.

    Attributes:
      name: Its name.
      values: A value for each item, a number or a text, or None if it has none.
      log: Whether numbers are drawn on a logarithmic axis.
    """

    name: str
    values: tuple[float | str | None, ...]
    log: bool = False

    @property
    def choices(self) -> tuple[str, ...]:
        """The texts among its values, in their order; empty if all are numbers."""
        given = [each for each in self.values if each is not None]
        return tuple(dict.fromkeys(map(str, given))) if any(map(_is_text, given)) else ()

    def axis(self) -> Axis:
        """Returns the axis of its numbers, or of the places of its choices."""
        if count := len(self.choices):
            return Axis(tuple(map(float, range(count))), -0.5, count - 0.5)
        return axis_of([each for each in self.values if each is not None] or [0.0], self.log)

    def place(self, value: float | str | None) -> float | None:
        """Returns the share of the axis at which a value lies."""
        if value is None:
            return None
        return self.axis()(self.choices.index(str(value)) if self.choices else value)

    def label(self, tick: float) -> str:
        """Returns the text at a tick of the axis."""
        text = self.choices[int(tick)] if self.choices else number(tick)
        return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _is_text(value: float | str) -> bool:
    return isinstance(value, str | bool)


def parallel(columns: Sequence[Column], ranks: Sequence[float], titles: Sequence[str]) -> str:
    """Draws a line per item across one vertical axis per column.

    Args:
      columns: The axes; a line leaves out those without a value of its item.
      ranks: Standing of each item, from 0 for the best to 1 for the worst, which gives the colour.
      titles: Tooltip of each item.

    Returns:
      The SVG text.
    """
    svg = _canvas(2 * SIDE + BETWEEN * (len(columns) - 1), "parallel coordinates")
    for index, column in enumerate(columns):
        _vertical(svg, SIDE + BETWEEN * index, column)
    for item in sorted(range(len(ranks)), key=lambda each: -ranks[each]):
        places = [column.place(column.values[item]) for column in columns]
        points = [
            (SIDE + BETWEEN * index, _down(place))
            for index, place in enumerate(places)
            if place is not None
        ]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        style = {"fill": "none", "stroke": _colour(ranks[item]), "stroke-width": "2"}
        _tell(_add(svg, "polyline", points=line, **style), titles[item])
    return _text_of(svg)


def dots(across: Column, up: Column, titles: Sequence[str]) -> str:
    """Draws a dot per item: its setting across, its result upwards.

    Args:
      across: The setting of each item.
      up: The result of each item; those without one are left out.
      titles: Tooltip of each item.

    Returns:
      The SVG text.
    """
    width = 360
    svg = _canvas(SIDE + width + 20, f"{up.name} over {across.name}")
    _vertical(svg, SIDE, up)
    axis = across.axis()
    for tick in axis.ticks:
        x = SIDE + width * axis(tick)
        _add(svg, "text", across.label(tick), x=x, y=TOP + HIGH + 18, anchor="middle")
    _add(svg, "text", across.name, x=SIDE + width / 2, y=TOP + HIGH + 38, anchor="middle")
    for item, title in enumerate(titles):
        x, y = across.place(across.values[item]), up.place(up.values[item])
        if x is not None and y is not None:
            dot = _add(svg, "circle", cx=SIDE + width * x, cy=_down(y), r=4, fill=COLOURS[3])
            dot.set("fill-opacity", "0.7")
            _tell(dot, title)
    return _text_of(svg)


def shares(values: Mapping[str, float], title: str) -> str:
    """Draws a horizontal bar from 0 to 1 for each name."""
    label, width, row = 220, 360, 26
    svg = _canvas(label + width + 70, title, len(values) * row)
    for index, (name, value) in enumerate(values.items()):
        y = TOP + index * row
        _add(svg, "text", name, x=label - 10, y=y + 13, anchor="end")
        _add(svg, "rect", x=label, y=y, width=max(1, width * value), height=16, fill=COLOURS[3])
        _add(svg, "text", f"{value:.0%}", x=label + width * value + 8, y=y + 13)
    return _text_of(svg)


def spreads(rows: Sequence[tuple[str, Sequence[float], tuple[float, float]]], column: str) -> str:
    """Draws, for each label, its values as dots and its interval as a bar with the mean."""
    label, width, row = 260, 360, 26
    ends = [each for _, values, interval in rows for each in (*values, *interval)]
    axis = axis_of([each for each in ends if math.isfinite(each)], log=False)
    svg = _canvas(label + width + 40, f"{column} over seeds", len(rows) * row + 20)
    for index, (name, values, interval) in enumerate(rows):
        y = TOP + index * row + 8
        low, high = (label + width * axis(each) for each in interval)
        _add(svg, "text", name, x=label - 10, y=y + 4, anchor="end")
        _add(svg, "rect", x=low, y=y - 5, width=max(1, high - low), height=10, fill=COLOURS[5])
        svg[-1].set("fill-opacity", "0.35")
        for value in values:
            _add(svg, "circle", cx=label + width * axis(value), cy=y, r=4, fill=COLOURS[3])
    for tick in axis.ticks:
        x, y = label + width * axis(tick), TOP + len(rows) * row + 18
        _add(svg, "text", number(tick), x=x, y=y, anchor="middle")
    return _text_of(svg)


def _canvas(width: float, title: str, height: float = HIGH) -> ElementTree.Element:
    whole = TOP + height + BOTTOM
    svg = ElementTree.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "role": "img"})
    svg.set("viewBox", f"0 0 {width:.0f} {whole:.0f}")
    svg.attrib |= {"width": f"{width:.0f}", "height": f"{whole:.0f}", "fill": INK}
    svg.attrib |= {"font-family": FONT, "font-size": str(SIZE), "aria-label": _clean(title)}
    _add(svg, "text", title, x=20, y=22)
    svg[-1].attrib |= {"font-size": str(TITLE_SIZE), "font-weight": "600"}
    return svg


def _vertical(svg: ElementTree.Element, x: float, column: Column) -> None:
    """Draws the vertical axis of a column."""
    axis = column.axis()
    _add(svg, "line", x1=x, y1=TOP, x2=x, y2=TOP + HIGH, stroke=INK)
    _add(svg, "text", column.name, x=x, y=TOP - 12, anchor="middle")
    for tick in axis.ticks:
        if 0 <= axis(tick) <= 1:
            _add(svg, "text", column.label(tick), x=x - 6, y=_down(axis(tick)) + 4, anchor="end")


def _down(share: float) -> float:
    return TOP + HIGH * (1 - share)


def _colour(rank: float) -> str:
    parts = (round(best + (worst - best) * rank) for best, worst in zip(BEST, WORST, strict=True))
    return "#" + "".join(f"{part:02x}" for part in parts)


def _add(
    parent: ElementTree.Element, name: str, text: str = "", anchor: str = "", **attributes
) -> ElementTree.Element:
    given = {key: f"{each:.2f}" if type(each) in (int, float) else each
             for key, each in attributes.items()}  # fmt: skip
    added = ElementTree.SubElement(
        parent, name, given | ({"text-anchor": anchor} if anchor else {})
    )
    added.text = _clean(text) or None
    return added


def _tell(parent: ElementTree.Element, text: str) -> None:
    _add(parent, "title", text)


def _clean(text: str) -> str:
    return NOT_XML.sub("�", text)


def _text_of(svg: ElementTree.Element) -> str:
    return ElementTree.tostring(svg, encoding="unicode") + "\n"
