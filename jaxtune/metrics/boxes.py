"""Boxes in an answer as PaliGemma writes them, and how well they are found.

A box is four location tokens, `<loc0000>` to `<loc1023>`, for y_min, x_min, y_max and x_max, and
its label; boxes are joined by ` ; `. A token's number is 1023 times the share of the picture's
side, rounded, as big_vision writes and reads it (where others divide by 1024, no side of a box
moves by more than a thousandth of the picture's).

Answers tell no confidence by which to rank their boxes, so there is no average precision.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from jaxtune.metrics.metric import Metric, Prediction, average, references

LAST = 1023  # the number of the last location token
NEAR = 0.5  # the overlap from which a box is found
SEPARATOR = ";"
BOX = re.compile(r"((?:<loc\d{4}>){4})(?:<seg\d{3}>)*([^<>]*)")
SHARE = re.compile(r"\d{4}")


@dataclass(frozen=True)
class Box:
    """Where something is, in shares of a picture's sides from its upper left corner."""

    label: str
    y_min: float
    x_min: float
    y_max: float
    x_max: float

    @property
    def sides(self) -> tuple[float, float, float, float]:
        """In the order they are written."""
        return self.y_min, self.x_min, self.y_max, self.x_max


def written(boxes: Sequence[Box]) -> str:
    """Boxes as PaliGemma writes them."""
    return f" {SEPARATOR} ".join(f"{_located(box)} {box.label}".strip() for box in boxes)


def parsed(text: str) -> tuple[list[Box], int]:
    """The boxes of a text, and how many of its parts are none: torn, without area or label."""
    parts = [part.strip() for part in text.split(SEPARATOR) if part.strip()]
    found = [_box(part) for part in parts]
    boxes = [box for box in found if box is not None]
    return boxes, len(parts) - len(boxes)


def overlap(first: Box, second: Box) -> float:
    """The intersection of two boxes over their union (IoU); 0 where there is neither."""
    height = min(first.y_max, second.y_max) - max(first.y_min, second.y_min)
    width = min(first.x_max, second.x_max) - max(first.x_min, second.x_min)
    shared = max(height, 0.0) * max(width, 0.0)
    whole = _area(first) + _area(second) - shared
    return shared / whole if whole > 0 else 0.0


def pairs(answered: Sequence[Box], expected: Sequence[Box], near: float = NEAR) -> int:
    """How many boxes are found: the most pairs of one label and enough overlap, each box in one."""
    reached = [
        [at for at, each in enumerate(expected) if _alike(box, each) and overlap(box, each) >= near]
        for box in answered
    ]
    holder: dict[int, int] = {}  # of an expected box: the answered one it is paired with

    def placed(box: int, tried: set[int]) -> bool:
        """Pair a box, by moving others where that makes room."""
        for at in reached[box]:
            if at not in tried:
                tried.add(at)
                if at not in holder or placed(holder[at], tried):
                    holder[at] = box
                    return True
        return False

    return sum(placed(box, set()) for box in range(len(answered)))


def f1(near: float = NEAR) -> Metric:
    """Twice the boxes found over those answered and those expected, of all rows together."""

    def counted(row: Prediction) -> tuple[float, float]:
        answered, expected = _both(row)
        return 2.0 * pairs(answered, expected, near), float(len(answered) + len(expected))

    return Metric(f"f1@{near:g}", _rows(counted), average)


def _overlaps(row: Prediction) -> tuple[float, float]:
    answered, expected = _both(row)
    best = [
        max((overlap(box, each) for box in answered if _alike(box, each)), default=0.0)
        for each in expected
    ]
    return sum(best), float(len(expected))


def _torn(row: Prediction) -> tuple[float, float]:
    boxes, torn = parsed(row.answer)
    return float(torn), float(len(boxes) + torn)


def _rows(count: Callable[[Prediction], tuple[float, float]]) -> Callable:
    """A total and the number of those it is of, for each row."""
    return lambda rows: np.array([count(row) for row in rows])


F1 = f1()
# Of each expected box, how much the nearest answered one of its label overlaps it, on average.
IOU = Metric("iou", _rows(_overlaps), average)
# The share of what was answered that is no box.
MALFORMED = Metric("malformed", _rows(_torn), average, higher=False)


def _both(row: Prediction) -> tuple[list[Box], list[Box]]:
    """The boxes answered, and those of all references."""
    expected = chain.from_iterable(parsed(each)[0] for each in references(row))
    return parsed(row.answer)[0], list(expected)


def _box(part: str) -> Box | None:
    found = BOX.fullmatch(part)
    if found is None:
        return None
    numbers = [int(each) for each in SHARE.findall(found[1])]
    label = " ".join(found[2].split())
    box = Box(label, *(number / LAST for number in numbers))
    return box if label and max(numbers) <= LAST and _area(box) > 0 else None


def _located(box: Box) -> str:
    numbers = (round(min(max(side, 0.0), 1.0) * LAST) for side in box.sides)
    return "".join(f"<loc{number:04d}>" for number in numbers)


def _area(box: Box) -> float:
    return max(box.y_max - box.y_min, 0.0) * max(box.x_max - box.x_min, 0.0)


def _alike(first: Box, second: Box) -> bool:
    return first.label.casefold() == second.label.casefold()
