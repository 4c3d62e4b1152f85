"""Palettes for themes: the completion is a JSON array of exactly four hex colours."""

import json
import re
from collections.abc import Mapping
from typing import Any

from jaxtune.data.errors import RowError, column
from jaxtune.metrics.colour import DISTANCE, VALID, palette
from jaxtune.tasks import short

METRICS = (VALID, DISTANCE)  # a palette equal to its reference has distance 0
ASK = "description"
COLUMNS = {
    "description": "a theme in words",
    "colors": "its colours, a list or a text that holds one",
}
COUNT = 4
FILLING = "#000000"
COLOUR = re.compile(r"#?([0-9a-fA-F]{6})|#([0-9a-fA-F]{3})")
LIST = re.compile(r"\s*[\[(]\s*([^\[\]()]+?)\s*,?\s*[\])]\s*")
PREFIX = (
    "Choose a palette for a theme: a JSON array of four hex colors.\nTheme: {description}\nColors:"
)


def prefix(record: Mapping[str, Any], place: str) -> str:
    """Returns the instruction and the theme."""
    return PREFIX.format(description=str(column(record, "description", place)).strip())


def suffix(record: Mapping[str, Any], place: str) -> str:
    """Returns a JSON array of four colours; long lists are cut, short ones padded with black."""
    given = column(record, "colors", place)
    colours = [_normal(colour, place) for colour in _listed(given, place)]
    return " " + json.dumps((colours + [FILLING] * COUNT)[:COUNT])


def shown(answer: str, colour: bool) -> str:
    """Returns the four colours as hex, after patches in these colours if `colour` is true."""
    colours = palette(answer)
    if colours is None:
        return f"not a palette of four: {short(answer.strip())}"
    swatches = f"{''.join(map(_swatch, colours))}  " if colour else ""
    return f"{swatches}{' '.join(colours)}"


def _swatch(colour: str) -> str:
    """Returns the terminal escape sequence that prints a patch in a colour."""
    red, green, blue = bytes.fromhex(_normal(colour, "the answer").removeprefix("#"))
    return f"\033[48;2;{red};{green};{blue}m      \033[0m"


def _listed(given: Any, place: str) -> list[Any]:
    """Returns the list in a column, which may be a text in JSON or Python syntax."""
    found = given
    if isinstance(given, str):
        # Not parsed with `ast`, which is not safe here: several threads read rows at once.
        inner = LIST.fullmatch(given)
        found = [each.strip(" '\"\n") for each in inner[1].split(",")] if inner else None
    if not isinstance(found, list | tuple) or not any(found):
        raise RowError(
            place,
            f"column 'colors' is {short(given)}; expected a list of colours, such as "
            "['#1f2a44', '#e8dcc5']",
        )
    return list(found)


def _normal(colour: Any, place: str) -> str:
    """Returns a colour as `#` and six lowercase hex digits."""
    digits = COLOUR.fullmatch(colour.strip()) if isinstance(colour, str) else None
    if digits is None:
        raise RowError(
            place, f"column 'colors' has {short(colour)}; expected hex colours such as #1f2a44"
        )
    wide = digits[1] or "".join(each * 2 for each in digits[2])
    return f"#{wide.lower()}"
