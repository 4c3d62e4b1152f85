"""Small SVG plots: scatters of guesses over the truth, bars of sorted errors, and curves.

A page, white or black, may hold several: they share no style, script, font or id with it.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from xml.etree import ElementTree

from jaxtune.display.errors import UserError

INK = "#767676"  # contrast of 4.5 : 1 with both black and white
COLOURS = ("#1b9e77", "#e08e0b", "#d1495b", "#4c78c8", "#9467bd", "#767676")  # of kinds, cyclic
FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
SIZE, TITLE_SIZE = 12, 15  # font sizes in pixels
LETTER = 0.6 * SIZE  # assumed width of a letter in pixels, an upper bound
TOP, RIGHT, BOTTOM = 62, 28, 50  # margins in pixels; the left one depends on the tick labels
SQUARE, WIDE, HIGH = 460, 640, 300  # pixels: side of a scatter's plot area; that of other plots
STRIP = 0.12  # fraction of a logarithmic axis reserved for values of zero and less
TICKS = 6  # approximate number of ticks on an axis
CROWD, FEW = 300, 40  # points above which they are drawn smaller; up to which a curve shows each
EQUAL = 1e-9  # relative difference below which values are drawn as equal
NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

Format = Callable[[float], str]


@dataclass(frozen=True)
class Point:
    """A guess and its true value; `kind` sets the colour, and `label` appears in the tooltip."""

    truth: float
    guess: float
    kind: str = ""
    label: str = ""


@dataclass(frozen=True)
class Bar:
    """The error of one item; `kind` sets the colour, and `label` appears in the tooltip."""

    value: float
    kind: str = ""
    label: str = ""


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic axis, which maps values to fractions of its length."""

    ticks: tuple[float, ...]
    low: float
    high: float
    log: bool = False
    strip: float = 0.0  # fraction of the length below `low`, for values of zero and less
    negative: bool = False  # whether some values in the strip are below zero

    def __call__(self, value: float) -> float:
        """Returns the position of a value, from 0 at the start of the axis to 1 at its end."""
        if not self.log:
            return (value - self.low) / (self.high - self.low)
        if value <= 0:
            return self.strip / 2
        begin, end = math.log(self.low), math.log(self.high)
        return self.strip + (1 - self.strip) * (math.log(value) - begin) / (end - begin)

    def labels(self, text: Format) -> dict[float, str]:
        """Returns the label of each tick; that of the strip is `≤ 0` if it has negative values."""
        found = {tick: text(tick) for tick in self.ticks}
        return found | {0.0: f"≤ {text(0.0)}"} if self.strip and self.negative else found


def number(value: float) -> str:
    """Formats a number for an axis: `1,500`, `0.05`, `2e+09`."""
    return f"{value:.4g}" if value and not 1e-4 <= abs(value) < 1e7 else f"{value:,.7g}"


def scatter(
    points: Sequence[Point],
    *,
    title: str,
    x_label: str = "truth",
    y_label: str = "guess",
    kinds: Sequence[str] = (),
    reach: Sequence[float] = (),
    log: bool = False,
    text: Format = number,
) -> str:
    """Draws guesses over the truth on two equal axes, with the diagonal where both agree.

    Args:
      title, x_label, y_label: Texts of the plot; tooltips use the axis labels too.
      kinds: Order of the legend and its colours; kinds missing here follow.
      reach: Further values that the axes must cover.
      log: Whether axes are logarithmic; values of zero and less then lie in a strip of their own.
      text: Formats the values of ticks and tooltips.

    Returns:
      The SVG text.
    """
    values = [value for point in points for value in (point.truth, point.guess)]
    _check(values)
    _check([*values, *reach])
    axis = axis_of([*values, *reach], log)
    colours = _colours(points, kinds)
    field = _Field(axis, axis, SQUARE, SQUARE, text)
    svg = field.drawn(title, x_label, y_label, _legend(points, colours))
    for tick, label in axis.labels(text).items():
        field.line(svg, axis(tick), 0, axis(tick), 1, stroke_opacity=_strength(axis, tick))
        field.below(svg, axis(tick), label)
    field.line(svg, axis.strip, axis.strip, 1, 1, stroke_dasharray="5 4")
    group = _add(svg, "g", fill_opacity=0.65)
    radius = 4 if len(points) <= CROWD else 2.5
    for point in points:
        x, y = field.at(axis(point.truth), axis(point.guess))
        dot = _add(group, "circle", cx=x, cy=y, r=radius, fill=colours[point.kind])
        _tell(dot, point.label, f"{x_label} {text(point.truth)}, {y_label} {text(point.guess)}")
    return _written(svg)


def bars(
    items: Sequence[Bar],
    *,
    title: str,
    x_label: str = "items, from the smallest error to the largest",
    y_label: str = "error",
    kinds: Sequence[str] = (),
    marks: Mapping[str, float] | None = None,
    reach: Sequence[float] = (),
    log: bool = False,
    text: Format = number,
) -> str:
    """Draws the error of every item, 0 or more, as a bar, in ascending order.

    Args:
      marks: Values by name, such as the mean, drawn as horizontal lines.
      title, x_label, y_label, kinds, reach, log, text: As in `scatter`.

    Returns:
      The SVG text.
    """
    marks = dict(marks or {})
    items = sorted(items, key=lambda item: item.value)
    sizes = [item.value for item in items]
    _check(sizes)
    values = [*sizes, *marks.values(), *reach]
    _check(values)
    if min(values) < 0:
        raise UserError(f"cannot plot an error of {min(values)}: expected 0 or more")
    axis = axis_of(values if log else [*values, 0.0], log)
    colours = _colours(items, kinds)
    ranks = Axis(_ranks(len(items)), 0, len(items))
    field = _Field(ranks, axis, WIDE, HIGH, text)
    svg = field.drawn(title, x_label, y_label, _legend(items, colours))
    for rank in ranks.ticks:
        field.below(svg, ranks(rank - 0.5), f"{rank:,}")
    group = _add(svg, "g", fill_opacity=0.85)
    for place, item in enumerate(items):
        bar = field.bar(group, ranks(place), ranks(place + 1), axis(item.value))
        bar.set("fill", colours[item.kind])
        _tell(bar, item.label, text(item.value))
    _draw_marks(svg, field, marks)
    return _written(svg)


def curves(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    x_label: str = "step",
    y_label: str = "loss",
    log: bool = False,
    text: Format = number,
) -> str:
    """Draws values over steps as one line per name; up to `FEW` points of a line get dots.

    Args:
      series: (step, value) points by name; names without points are left out.
      title, x_label, y_label, log, text: As in `scatter`; `log` affects the values only.

    Returns:
      The SVG text.
    """
    series = {name: list(points) for name, points in series.items() if points}
    steps, values = ([point[k] for each in series.values() for point in each] for k in (0, 1))
    _check(steps)
    _check(values)
    across = axis_of([0, 1, *steps], log=False)
    field = _Field(across, axis_of(values, log), WIDE, HIGH, text)
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(series)}
    svg = field.drawn(title, x_label, y_label, list(colours.items()))
    for step in map(int, filter(float.is_integer, across.ticks)):
        field.below(svg, across(step), number(step))
    for name, points in series.items():
        _draw_curve(svg, field, name, points, colours[name])
    return _written(svg)


def axis_of(values: Sequence[float], log: bool) -> Axis:
    """Returns an axis with round ticks that covers all values."""
    if log:
        positive = [value for value in values if value > 0] or [1.0]
        strip = STRIP if min(values) <= 0 else 0.0
        return _logarithmic(min(positive), max(positive), strip, min(values) < 0)
    return _linear(min(values), max(values))


def _linear(low: float, high: float) -> Axis:  # from 0 if 0 <= low <= high / 2
    if low >= 0 and low <= high / 2:
        low = 0.0
    if high - low <= EQUAL * max(abs(low), abs(high)):
        margin = abs(high) / 2 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / (TICKS - 1)
    power = math.floor(math.log10(rough))
    step = next(m for m in (1, 2, 5, 10) if m * 10.0**power >= rough * (1 - EQUAL))
    # Dividing by an exact power of ten gives the floats nearest to the decimal tick labels.
    unit = (lambda k: k * step * 10**power) if power >= 0 else (lambda k: k * step / 10**-power)
    size = step * 10.0**power
    first, last = math.floor(low / size + EQUAL), math.ceil(high / size - EQUAL)
    ticks = tuple(float(unit(k)) for k in range(first, last + 1))
    return Axis(ticks, ticks[0], ticks[-1])


def _logarithmic(low: float, high: float, strip: float, negative: bool) -> Axis:
    """Puts ticks at 1, 2 and 5 times powers of ten, or at powers of ten if those are too many."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    rounds = [
        m * 10.0**power if power >= 0 else m / 10.0**-power for power in powers for m in (1, 2, 5)
    ]
    begin = max(each for each in rounds if each <= low)
    end = min(each for each in rounds if each >= high and each > begin)
    ticks = [each for each in rounds if begin <= each <= end]
    if len(ticks) > TICKS + 2:
        decades = [each for each in ticks if rounds.index(each) % 3 == 0]
        ticks = decades[:: math.ceil(len(decades) / (TICKS + 2))]
    zero = (0.0,) if strip else ()
    return Axis((*zero, *ticks), begin, end, True, strip, negative)


def _ranks(count: int) -> tuple[int, ...]:  # labelled ranks: 1, then round numbers up to count
    ticks = [int(tick) for tick in _linear(0, count).ticks if tick == int(tick)]
    return (1, *(tick for tick in ticks if 1 < tick <= count))


@dataclass(frozen=True)
class _Field:  # the plot area; its methods take x, y and share as fractions of its sides
    x: Axis
    y: Axis
    width: int
    height: int
    text: Format
    top: int = TOP

    @property
    def left(self) -> float:  # pixels left of the plot area, for the y axis's title and labels
        return 40 + LETTER * max(map(len, self.y.labels(self.text).values()))

    def at(self, x: float, y: float) -> tuple[float, float]:  # in pixels
        return self.left + x * self.width, self.top + (1 - y) * self.height

    def line(
        self, parent: ElementTree.Element, x: float, y: float, to_x: float, to_y: float, **style
    ) -> None:
        (x1, y1), (x2, y2) = self.at(x, y), self.at(to_x, to_y)
        _add(parent, "line", x1=x1, y1=y1, x2=x2, y2=y2, stroke=INK, **style)

    def bar(
        self, parent: ElementTree.Element, begin: float, end: float, share: float
    ) -> ElementTree.Element:  # at least one pixel high, so that an error of 0 is visible
        (x, y), (right, foot) = self.at(begin, share), self.at(end, 0)
        gap = 1 if right - x > 4 else 0
        height = max(foot - y, 1)
        box = dict(x=x + gap / 2, y=foot - height, width=right - x - gap, height=height)
        return _add(parent, "rect", **box)

    def below(self, parent: ElementTree.Element, share: float, label: str) -> None:  # x tick label
        x, y = self.at(share, 0)
        _add(parent, "text", label, x=x, y=y + 18, text_anchor="middle")

    def drawn(
        self, title: str, x_label: str, y_label: str, legend: Sequence[tuple[str, str]]
    ) -> ElementTree.Element:  # an SVG with titles, legend and the y axis; callers add the rest
        right = max(self.left + self.width, *_legend_starts(self.left, legend))
        width, height = round(right + RIGHT), self.top + self.height + BOTTOM
        svg = ElementTree.Element("svg", _attributes(xmlns="http://www.w3.org/2000/svg"))
        box = dict(viewBox=f"0 0 {width} {height}", width=width, height=height)
        svg.attrib |= _attributes(**box, role="img", aria_label=_clean(title), fill=INK)
        svg.attrib |= _attributes(font_family=FONT, font_size=SIZE)
        weight = dict(font_size=TITLE_SIZE, font_weight=600)
        _add(svg, "text", title, x=self.left, y=22, **weight)
        _draw_legend(svg, self.left, 46, legend)
        middle, down = self.left + self.width / 2, self.top + self.height / 2
        _add(svg, "text", x_label, x=middle, y=height - 10, text_anchor="middle")
        turned = f"translate(16 {_short(down)}) rotate(-90)"
        _add(svg, "text", y_label, transform=turned, text_anchor="middle")
        self._y_ticks(svg)
        return svg

    def _y_ticks(self, svg: ElementTree.Element) -> None:
        for tick, label in self.y.labels(self.text).items():
            x, y = self.at(0, self.y(tick))
            strength = _strength(self.y, tick)
            self.line(svg, 0, self.y(tick), 1, self.y(tick), stroke_opacity=strength)
            _add(svg, "text", label, x=x - 8, y=y + SIZE / 3, text_anchor="end")


def _strength(axis: Axis, tick: float) -> float:  # opacity: higher at the axis's start or strip
    return 0.6 if axis(tick) <= axis.strip / 2 else 0.22


def _draw_marks(svg: ElementTree.Element, field: _Field, marks: Mapping[str, float]) -> None:
    last = math.inf
    for name, value in sorted(marks.items(), key=lambda mark: mark[1]):
        share = field.y(value)
        field.line(svg, 0, share, 1, share, stroke_dasharray="5 4")
        x, y = field.at(0, share)  # names are on the left, where bars are low
        last = min(y - 5, last - SIZE - 2)  # above the line, and above the previous name
        _add(svg, "text", f"{name} {field.text(value)}", x=x + 6, y=last)


def _draw_curve(
    svg: ElementTree.Element,
    field: _Field,
    name: str,
    points: Sequence[tuple[float, float]],
    colour: str,
) -> None:
    places = [field.at(field.x(step), field.y(value)) for step, value in points]
    line = " ".join(f"{_short(x)},{_short(y)}" for x, y in places)
    style = dict(fill="none", stroke=colour, stroke_width=2, stroke_linejoin="round")
    _add(svg, "polyline", points=line, **style)
    for (x, y), (step, value) in zip(places, points, strict=True):
        if len(points) <= FEW:
            dot = _add(svg, "circle", cx=x, cy=y, r=3, fill=colour)
            _tell(dot, name, f"{field.text(value)} at {number(step)}")


def _check(values: Sequence[float]) -> None:
    if not values:
        raise UserError("nothing to plot: expected at least one value")
    invalid = [value for value in values if not math.isfinite(value)]
    if invalid:
        raise UserError(f"cannot plot {invalid[0]}: expected finite numbers")


def _colours(items: Iterable[Point | Bar], kinds: Sequence[str]) -> dict[str, str]:
    names = dict.fromkeys([*kinds, *(item.kind for item in items)])
    return {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(names)}


def _legend(items: Sequence[Point | Bar], colours: Mapping[str, str]) -> list[tuple[str, str]]:
    counts = {name: sum(item.kind == name for item in items) for name in colours}
    return [(f"{name} ({counts[name]:,})", colours[name]) for name in colours if name]


def _legend_starts(x: float, legend: Sequence[tuple[str, str]]) -> list[float]:  # and its end
    return list(accumulate((LETTER * len(text) + 30 for text, _ in legend), initial=x))


def _draw_legend(
    svg: ElementTree.Element, x: float, y: float, legend: Sequence[tuple[str, str]]
) -> None:
    for (text, colour), (start, _) in zip(legend, pairwise(_legend_starts(x, legend)), strict=True):
        _add(svg, "circle", cx=start + 5, cy=y - 4, r=5, fill=colour)
        _add(svg, "text", text, x=start + 15, y=y)


def _tell(parent: ElementTree.Element, label: str, text: str) -> None:  # adds a tooltip
    _add(parent, "title", f"{label}: {text}" if label else text)


def _add(
    parent: ElementTree.Element, name: str, text: str | None = None, **attributes
) -> ElementTree.Element:
    added = ElementTree.SubElement(parent, name, _attributes(**attributes))
    added.text = None if text is None else _clean(text)
    return added


def _attributes(**values: str | float) -> dict[str, str]:  # font_size becomes font-size
    return {
        name.replace("_", "-"): value if isinstance(value, str) else _short(value)
        for name, value in values.items()
    }


def _short(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _clean(text: str) -> str:  # replaces characters that XML does not allow
    return NOT_XML.sub("�", text)


def _written(svg: ElementTree.Element) -> str:
    return ElementTree.tostring(svg, encoding="unicode") + "\n"
