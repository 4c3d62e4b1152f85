"""What to look for in a picture becomes boxes, in the manner of PaliGemma: `detect cat ; dog`.

How boxes are written is told in `jaxtune.metrics.boxes`. A tokenizer whose vocabulary holds
location tokens as ordinary pieces, as PaliGemma's does, reads them as these wherever a text has
them; under any other they are text.
"""

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from jaxtune.data.errors import RowError, column
from jaxtune.display.plots import COLOURS
from jaxtune.metrics.boxes import F1, IOU, MALFORMED, SEPARATOR, Box, parsed, written
from jaxtune.tasks import short, texts

COLUMNS = {
    "objects": "what to look for, a text or a list; each label once where it is left out",
    "labels": "what each box holds, a list of texts",
    "boxes": "[x_min, y_min, x_max, y_max] each: pixels, or shares of the sides without the next",
    "width": "the picture's, in pixels, which boxes in pixels need",
    "height": "likewise",
    "suffix": "instead of labels and boxes: these as PaliGemma writes them",
}
METRICS = (F1, IOU, MALFORMED)
ASK = "objects"
PREFIX = "detect {objects}\n"
JOINED = f" {SEPARATOR} "
MARKS = set(f"<>{SEPARATOR}\n")  # of which labels hold none, or they could not be told apart


def prefix(record: Mapping[str, Any], place: str) -> str:
    """What to do, and what to look for."""
    given = texts(record, "objects", place) or (box.label for box in _boxes(record, place))
    return PREFIX.format(objects=JOINED.join(dict.fromkeys(given)))


def suffix(record: Mapping[str, Any], place: str) -> str:
    """The boxes, in the order they are given; a suffix that is there stays as it is."""
    boxes = _boxes(record, place)
    ready = texts(record, "suffix", place)
    return ready[0] if ready else written(boxes)


def drawn(text: str) -> list[Box]:
    """The boxes of an answer or of a reference."""
    return parsed(text)[0]


def shown(answer: str, colour: bool) -> str:
    """A line for each box: what is where, in percent of the picture; and what is none."""
    boxes, torn = parsed(answer)
    if not boxes:
        return f"no box: {short(answer.strip())}"
    colours = dict.fromkeys(box.label for box in boxes)
    colours = {label: COLOURS[at % len(COLOURS)] for at, label in enumerate(colours)}
    lines = [_line(box, colours[box.label] if colour else "") for box in boxes]
    return "\n".join([*lines, *([f"and {torn} that cannot be read"] if torn else [])])


def _line(box: Box, colour: str) -> str:
    top, left, bottom, right = (f"{side:.0%}" for side in box.sides)
    where = f"{box.label}: {left} to {right} from the left, {top} to {bottom} from the top"
    if not colour:
        return where
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return f"\033[48;2;{red};{green};{blue}m  \033[0m {where}"


def _boxes(record: Mapping[str, Any], place: str) -> list[Box]:
    """The boxes of a record."""
    ready = texts(record, "suffix", place)
    if ready:
        boxes, torn = parsed(ready[0])
        if torn or not boxes:
            raise RowError(place, f"column 'suffix' is {short(ready[0])}; boxes were expected")
        return boxes
    labels, given = texts(record, "labels", place), column(record, "boxes", place)
    if not isinstance(given, list | tuple) or len(given) != len(labels):
        raise RowError(
            place,
            f"column 'boxes' is {short(given)}; a list of as many boxes as 'labels' has names, "
            f"{len(labels)}, was expected",
        )
    sides = _size(record, place)
    return [_box(label, box, sides, place) for label, box in zip(labels, given, strict=True)]


def _box(label: str, given: Any, size: tuple[float, float], place: str) -> Box:
    """A box in shares of the sides, what lies outside of the picture cut off."""
    if MARKS & set(label):
        raise RowError(place, f"the label {short(label)} holds one of < > ; or a line break")
    numbers = isinstance(given, list | tuple) and len(given) == 4 and all(map(_number, given))
    left, top, right, bottom = given if numbers else (math.nan,) * 4
    width, height = size
    shares = [top / height, left / width, bottom / height, right / width]
    top, left, bottom, right = (min(max(share, 0.0), 1.0) for share in shares)
    box = Box(label, top, left, bottom, right)
    if not numbers or max(shares) > 2 or not parsed(written([box]))[0]:
        raise RowError(
            place,
            f"a box is {short(given)} in a picture of {width:g} x {height:g}; x_min, y_min, x_max "
            "and y_max of a part of it were expected, in pixels where there are columns 'width' "
            "and 'height', else in shares of the sides",
        )
    return box


def _size(record: Mapping[str, Any], place: str) -> tuple[float, float]:
    """The picture's width and height; 1 and 1 where boxes are in shares of it."""
    given = [record.get(name) for name in ("width", "height")]
    if given == [None, None]:
        return 1.0, 1.0
    if not all(_number(each) and each > 0 for each in given):
        raise RowError(
            place, f"'width' and 'height' are {given[0]!r} and {given[1]!r}; pixels were expected"
        )
    return given[0], given[1]


def _number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
