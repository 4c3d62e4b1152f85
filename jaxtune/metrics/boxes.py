"""Bounding boxes in PaliGemma's text format, and metrics of detection.

A box is four location tokens, `<loc0000>` to `<loc1023>`, for y_min, x_min, y_max and x_max, and
its label; boxes are joined by ` ; `. A token's number is the coordinate as a fraction of the
picture's side, times 1023 and rounded, as big_vision writes and reads it. (Code that divides by
1024 moves no side of a box by more than a thousandth of the picture's side.)

Answers carry no confidence scores to rank boxes by, so there is no average precision.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from jaxtune.metrics.metric import Metric, Prediction, average, references

LAST = 1023  # the number of the last location token
NEAR = 0.5  # the least IoU at which a box counts as found
SEPARATOR = ";"
BOX = re.compile(r"((?:<loc\d{4}>){4})(?:<seg\d{3}>)*([^<>]*)")
SHARE = re.compile(r"\d{4}")


@dataclass(frozen=True)
class Box:
    """A labelled box, in fractions of the picture's sides from its upper left corner."""

    label: str
    y_min: float
    x_min: float
    y_max: float
    x_max: float

    @property
    def sides(self) -> tuple[float, float, float, float]:
        """Coordinates in the order in which PaliGemma writes them."""
        return self.y_min, self.x_min, self.y_max, self.x_max


def written(boxes: Sequence[Box]) -> str:
    """Returns boxes as text in PaliGemma's format."""
    return f" {SEPARATOR} ".join(f"{_located(box)} {box.label}".strip() for box in boxes)


def parsed(text: str) -> tuple[list[Box], int]:
    """Returns the boxes in a text, and the number of its parts that are malformed.

    A part is malformed if it is no box, or a box without area or label. Segmentation tokens are
    ignored.
    """
    parts = [part.strip() for part in text.split(SEPARATOR) if part.strip()]
    found = [_box(part) for part in parts]
    boxes = [box for box in found if box is not None]
    return boxes, len(parts) - len(boxes)


def overlap(first: Box, second: Box) -> float:
    """Returns the intersection over union (IoU) of two boxes; 0 if their union is empty."""
    height = min(first.y_max, second.y_max) - max(first.y_min, second.y_min)
    width = min(first.x_max, second.x_max) - max(first.x_min, second.x_min)
    shared = max(height, 0.0) * max(width, 0.0)
    whole = _area(first) + _area(second) - shared
    return shared / whole if whole > 0 else 0.0


def pairs(answered: Sequence[Box], expected: Sequence[Box], near: float = NEAR) -> int:
    """Returns the number of expected boxes that were found, by maximum bipartite matching.

    Two boxes can be paired if their labels agree, ignoring case, and their IoU is at least `near`;
    each box is in at most one pair.
    """
    reached = [
        [at for at, each in enumerate(expected) if _alike(box, each) and overlap(box, each) >= near]
        for box in answered
    ]
    holder: dict[int, int] = {}  # from an expected box to the answered one it is paired with

    def placed(box: int, tried: set[int]) -> bool:
        """Pairs an answered box, re-pairing others if needed; returns whether that was possible."""
        for at in reached[box]:
            if at not in tried:
                tried.add(at)
                if at not in holder or placed(holder[at], tried):
                    holder[at] = box
                    return True
        return False

    return sum(placed(box, set()) for box in range(len(answered)))


def f1(near: float = NEAR) -> Metric:
    """Returns F1 over all rows together: 2 · found / (answered + expected) boxes."""

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
    """Returns the statistics of a metric, given a function to a row's total and count."""
    return lambda rows: np.array([count(row) for row in rows])


F1 = f1()
# Mean over expected boxes of the best IoU with an answered box of the same label, 0 without one.
IOU = Metric("iou", _rows(_overlaps), average)
# Share of the parts of answers that are malformed.
MALFORMED = Metric("malformed", _rows(_torn), average, higher=False)


def _both(row: Prediction) -> tuple[list[Box], list[Box]]:
    """Returns the boxes of the answer, and those of all references together."""
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
