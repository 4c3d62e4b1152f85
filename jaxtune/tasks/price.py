"""Prices of products: prompt and completion are the columns as they are."""

from collections.abc import Mapping, Sequence
from numbers import Number
from statistics import median
from typing import Any

from jaxtune.data.errors import RowError, column
from jaxtune.display.plots import Bar, Point, bars, scatter
from jaxtune.metrics import Prediction
from jaxtune.metrics.numbers import NEAR, SHARE, WEIGHTED, WRITTEN, by_digits, first, truth, written
from jaxtune.tasks import short

COLUMNS = {"prompt": "the product, and the question about its price", "completion": "the price"}
METRICS = (*WRITTEN, *WEIGHTED)
ASK = "prompt"
NEXT = 100
# Classes of guesses in plots: a hit, an error of up to twice a hit's bounds, or a larger error.
KINDS = tuple(
    f"{word} ${NEAR * times:.0f} or {SHARE * times:.0%}"
    for word, times in (("within", 1), ("within", 2), ("beyond", 2))
)
EDGE = 100  # times the highest price; guesses beyond it are drawn at that limit
BY_DIGITS = (
    "no weighted metrics: this tokenizer splits numbers into single digits, so the likeliest first "
    "tokens are digits, not prices"
)


def prefix(record: Mapping[str, Any], place: str) -> str:
    """Returns the column `prompt` unchanged."""
    return _written(record, "prompt", place)


def suffix(record: Mapping[str, Any], place: str) -> str:
    """Returns the column `completion` unchanged."""
    return _written(record, "completion", place)


def references(record: Mapping[str, Any], place: str) -> tuple[str, ...]:
    """Returns the completion as the only reference; raises `RowError` if it has no number."""
    price = suffix(record, place).strip()
    if first(price) is None:
        raise RowError(place, f"column 'completion' is {short(price)}; expected a price")
    return (price,)


def remarks(rows: Sequence[Prediction]) -> list[str]:
    """Returns the reason why there are no weighted metrics, if there are none."""
    return [BY_DIGITS] if by_digits(rows) else []


def plots(answered: Mapping[str, Sequence[Prediction]]) -> dict[str, dict[str, str]]:
    """Returns plots of guesses over prices and of all errors, coloured by the size of the error."""
    edge = EDGE * max(1.0, *(truth(row) for rows in answered.values() for row in rows))
    points = {name: [_point(row, edge) for row in rows] for name, rows in answered.items()}
    together = [point for each in points.values() for point in each]
    values = [value for point in together for value in (point.truth, point.guess)]
    errors = [_error(point) for point in together]
    cut = f", guesses clipped at {_dollars(edge)}" if edge in map(abs, values) else ""
    return {
        name: {
            "prices.svg": _prices(name, each, values, cut),
            "errors.svg": _errors(name, each, errors, cut),
        }
        for name, each in points.items()
    }


def _prices(name: str, points: Sequence[Point], reach: Sequence[float], cut: str) -> str:
    return scatter(
        points,
        title=f"Guesses against prices: {name}{cut}",
        x_label="price",
        kinds=KINDS,
        reach=reach,
        log=True,
        text=_dollars,
    )


def _errors(name: str, points: Sequence[Point], reach: Sequence[float], cut: str) -> str:
    errors = [_error(point) for point in points]
    return bars(
        [Bar(_error(point), point.kind, point.label) for point in points],
        title=f"Error of each item: {name}{cut}",
        marks={"mean": sum(errors) / len(errors), "median": median(errors)},
        kinds=KINDS,
        reach=reach,
        log=True,
        text=_dollars,
    )


def _point(row: Prediction, edge: float) -> Point:
    price, guess = truth(row), max(-edge, min(written(row) or 0.0, edge))
    error, near = abs(guess - price), max(NEAR, SHARE * price)
    kind = KINDS[0 if error < near else 1 if error < 2 * near else 2]
    return Point(price, guess, kind, f"{row.place} answered {short(row.answer.strip())}")


def _error(point: Point) -> float:
    return abs(point.guess - point.truth)


def _dollars(value: float) -> str:
    text = f"{abs(value):,.2f}".removesuffix(".00") if abs(value) < 100 else f"{abs(value):,.0f}"
    return f"{'-' if value < 0 else ''}${text}"


def _written(record: Mapping[str, Any], name: str, place: str) -> str:
    value = column(record, name, place)
    if isinstance(value, bool) or not isinstance(value, str | Number):
        raise RowError(place, f"column {name!r} is {short(value)}; expected a text or a number")
    return str(value)
