"""Object detection in PaliGemma's format: the prompt is `detect cat ; dog` and a line break.

`jaxtune.metrics.boxes` describes how boxes are written. A tokenizer with location tokens as
ordinary pieces of its vocabulary, such as PaliGemma's, encodes them as single tokens wherever they
occur in a text; any other tokenizer encodes them as plain text.
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
    "objects": "the objects to detect, a text or a list; each label once by default",
    "labels": "the label of each box, a list of texts",
    "boxes": "[x_min, y_min, x_max, y_max] each, in pixels, or in shares of the sides if there is "
    "no width and height",
    "width": "width of the picture in pixels, if boxes are in pixels",
    "height": "height of the picture in pixels, if boxes are in pixels",
    "suffix": "instead of labels and boxes: the boxes in PaliGemma's format",
}
METRICS = (F1, IOU, MALFORMED)
ASK = "objects"
PREFIX = "detect {objects}\n"
JOINED = f" {SEPARATOR} "
MARKS = set(f"<>{SEPARATOR}\n")  # not allowed in labels, which could not be parsed with them


def prefix(record: Mapping[str, Any], place: str) -> str:
    """Returns the instruction with the objects to look for, each once."""
    given = texts(record, "objects", place) or (box.label for box in _boxes(record, place))
    return PREFIX.format(objects=JOINED.join(dict.fromkeys(given)))


def suffix(record: Mapping[str, Any], place: str) -> str:
    """Returns the boxes as text, in the order given; a column `suffix` is returned stripped."""
    boxes = _boxes(record, place)
    ready = texts(record, "suffix", place)
    return ready[0] if ready else written(boxes)


def drawn(text: str) -> list[Box]:
    """Returns the boxes in an answer or a reference."""
    return parsed(text)[0]


def shown(answer: str, colour: bool) -> str:
    """Returns a line for each box, with its label and its position in percent of the picture.

    A last line counts the parts of the answer that are malformed. With `colour`, a line begins with
    a patch in the colour of its label.
    """
    boxes, malformed = parsed(answer)
    if not boxes:
        return f"no box: {short(answer.strip())}"
    colours = dict.fromkeys(box.label for box in boxes)
    colours = {label: COLOURS[at % len(COLOURS)] for at, label in enumerate(colours)}
    lines = [_line(box, colours[box.label] if colour else "") for box in boxes]
    return "\n".join([*lines, *([f"malformed boxes: {malformed}"] if malformed else [])])


def _line(box: Box, colour: str) -> str:
    top, left, bottom, right = (f"{side:.0%}" for side in box.sides)
    where = f"{box.label}: {left} to {right} from the left, {top} to {bottom} from the top"
    if not colour:
        return where
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return f"\033[48;2;{red};{green};{blue}m  \033[0m {where}"


def _boxes(record: Mapping[str, Any], place: str) -> list[Box]:
    """Returns the boxes of a record, from `suffix` or from `labels` and `boxes`."""
    ready = texts(record, "suffix", place)
    if ready:
        boxes, malformed = parsed(ready[0])
        if malformed or not boxes:
            raise RowError(place, f"column 'suffix' is {short(ready[0])}; expected boxes")
        return boxes
    labels, given = texts(record, "labels", place), column(record, "boxes", place)
    if not isinstance(given, list | tuple) or len(given) != len(labels):
        raise RowError(
            place,
            f"column 'boxes' is {short(given)}; expected a list of {len(labels)} boxes, one for "
            "each of 'labels'",
        )
    sides = _size(record, place)
    return [_box(label, box, sides, place) for label, box in zip(labels, given, strict=True)]


def _box(label: str, given: Any, size: tuple[float, float], place: str) -> Box:
    """Returns a box in fractions of the picture's sides, clipped to the picture.

    `given` is [x_min, y_min, x_max, y_max], and `size` the picture's width and height in its unit.
    """
    if MARKS & set(label):
        raise RowError(place, f"the label {short(label)} contains <, >, ; or a line break")
    numbers = isinstance(given, list | tuple) and len(given) == 4 and all(map(_number, given))
    left, top, right, bottom = given if numbers else (math.nan,) * 4
    width, height = size
    shares = [top / height, left / width, bottom / height, right / width]
    top, left, bottom, right = (min(max(share, 0.0), 1.0) for share in shares)
    box = Box(label, top, left, bottom, right)
    if not numbers or max(shares) > 2 or not parsed(written([box]))[0]:
        raise RowError(
            place,
            f"a box is {short(given)} in a picture of {width:g} x {height:g}; expected [x_min, "
            "y_min, x_max, y_max] within the picture, in pixels if there are columns 'width' and "
            "'height', otherwise in shares of the sides",
        )
    return box


def _size(record: Mapping[str, Any], place: str) -> tuple[float, float]:
    """Returns the picture's width and height in pixels, or 1 and 1 if boxes are in fractions."""
    given = [record.get(name) for name in ("width", "height")]
    if given == [None, None]:
        return 1.0, 1.0
    if not all(_number(each) and each > 0 for each in given):
        raise RowError(
            place, f"'width' and 'height' are {given[0]!r} and {given[1]!r}; expected pixels"
        )
    return given[0], given[1]


def _number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
