"""Conversion of config values, from Python or text, to the types and ranges of their fields."""

import ast
import dataclasses
import math
import numbers
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, NewType, Union, get_args, get_origin

from jaxtune.display.escapes import controlled

Name = NewType("Name", str)  # on one line, as services and files have it: no control characters
Place = NewType("Place", str)  # a path, a glob, or a name on the Hub
Pattern = NewType("Pattern", str)  # a regular expression over slash paths, as in `tree`

MOST_CHARACTERS = {Name: 256, Place: 4096, Pattern: 10_000, str: 100_000}
MOST_ENTRIES = 10_000  # of a list

# Conversion of values, from Python or text, to a field's type. The types of a union are tried in
# order, so one with text has its lists first: every value from the command line would fit text.


class Misfit(Exception):
    """A value that a type rejects; the message is empty where naming the type explains enough."""


@dataclass(frozen=True)
class Kind:
    """A scalar type: its displayed name, its conversion of Python values, and its text parser."""

    name: str
    accept: Callable[[Any], Any]
    read: Callable[[str], Any]


def _whole(value: Any) -> int:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise Misfit
    return int(value)


def _number(value: Any) -> float:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise Misfit
    try:
        return float(value)
    except OverflowError:
        raise Misfit from None


def _text(kind: Any) -> Callable[[Any], str]:
    """Returns the conversion to a kind of text, which rejects what no file can store."""

    def accept(value):
        text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
        if not isinstance(text, str):
            raise Misfit
        if len(text) > MOST_CHARACTERS[kind]:
            raise Misfit(f"{len(text):,} characters, at most {MOST_CHARACTERS[kind]:,} are allowed")
        if "\0" in text:
            raise Misfit("it contains a null character")
        if not text.isascii() and re.search("[\ud800-\udfff]", text):
            raise Misfit("it contains a lone surrogate, which no UTF-8 text has")
        if kind is Place and text.startswith("~") and os.path.expanduser(text) == text:
            raise Misfit("this user's home directory is not known")
        if kind is Name and (character := controlled(text)):
            raise Misfit(f"it contains the control character {character}")
        return text

    return accept


def _pattern(value: Any) -> str:
    from jaxtune.tree import patterns  # imports JAX, which most configs are read without

    text = _text(Pattern)(value)
    try:
        patterns.check(text)
    except patterns.PatternError as problem:
        raise Misfit(str(problem)) from None
    return text


def _exactly(*known: Any) -> Callable[[Any], Any]:
    def accept(value):
        if not any(value is each for each in known):
            raise Misfit
        return value

    return accept


WORDS = {"true": True, "false": False, "none": None, "null": None}
KINDS: dict[Any, Kind] = {
    bool: Kind("True | False", _exactly(True, False), lambda text: WORDS[text.lower()]),
    NoneType: Kind("None", _exactly(None), lambda text: WORDS[text.lower()]),
    int: Kind("whole number", _whole, int),
    float: Kind("number", _number, float),
    str: Kind("text", _text(str), str),
    Name: Kind("name", _text(Name), str),
    Place: Kind("path", _text(Place), str),
    Pattern: Kind("pattern", _pattern, str),
}


def fit(value: Any, kind: Any, take: Callable[[Any, Any], Any]) -> Any:
    """Converts a value by `take` to a type, or to the first type of a union that accepts it."""
    reason = ""
    for each in get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,):
        try:
            return take(value, each)
        except Misfit as misfit:
            reason = str(misfit) or reason
    raise Misfit(reason)


def conform(value: Any, kind: Any) -> Any:
    """Converts a Python value to a type; raises Misfit if the type does not accept it."""
    if kind in KINDS:
        return KINDS[kind].accept(value)
    inner = get_args(kind)
    if get_origin(kind) is Literal:
        if value not in inner:
            raise Misfit
        return value
    if isinstance(value, Mapping) and get_args(inner[0])[:1] == (str,):
        value = sorted(value.items(), key=repr)  # values by name, whose order has no meaning
    if not isinstance(value, list | tuple):
        raise Misfit
    if len(value) > MOST_ENTRIES:
        raise Misfit(f"{len(value):,} entries, at most {MOST_ENTRIES:,} are allowed")
    if inner[-1] is ...:
        inner = (inner[0],) * len(value)
    if len(value) != len(inner):
        raise Misfit
    return tuple(fit(each, part, conform) for each, part in zip(value, inner, strict=True))


def parse_text(text: str, kind: Any) -> Any:
    """Converts text from the command line to a type; raises Misfit as `conform` does."""
    whole = str if get_origin(kind) is Literal else ast.literal_eval
    read = KINDS[kind].read if kind in KINDS else whole
    try:
        value = read(text)
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError):
        raise Misfit from None
    return conform(value, kind)


def within(value: Any, limits: Mapping[str, Any]) -> bool:
    """Returns whether all numbers in a value are within limits; infinity and NaN never are."""
    if isinstance(value, tuple):
        return all(within(each, limits) for each in value)
    if type(value) not in (int, float):
        return True
    return (
        value >= limits.get("least", -math.inf)
        and value > limits.get("above", -math.inf)
        and value < limits.get("below", math.inf)
        and value <= limits.get("most", math.inf)
        and (type(value) is int or "share" not in limits or value < 1)
    )


SIGNS = {"least": "≥", "above": ">", "below": "<", "most": "≤"}


def expected(known: dataclasses.Field) -> str:
    """Returns a field's type, its limits and its usual values as text for errors and help."""
    given = [(SIGNS[name], known.metadata[name]) for name in SIGNS if name in known.metadata]
    limits = " and ".join(f"{sign} {_number_text(limit)}" for sign, limit in given)
    text = _notation(known.type, limits)
    if "share" in known.metadata:
        text = f"whole number {limits} | share below 1"
    return text + (f"; usually {known.metadata['usual']}" if "usual" in known.metadata else "")


def _number_text(limit: int | float) -> str:
    return f"{limit:,.0f}" if limit == int(limit) else f"{limit:g}".replace("e-0", "e-")


def _notation(kind: Any, limits: str) -> str:
    if kind in KINDS:
        return f"{KINDS[kind].name} {limits if kind in (int, float) else ''}".rstrip()
    inner = get_args(kind)
    if get_origin(kind) is Literal:
        return " | ".join(inner)
    if get_origin(kind) in (Union, UnionType):
        return " | ".join(_notation(each, limits) for each in inner)
    if inner[-1] is ...:
        return f"[{_notation(inner[0], limits)}, …]"
    return f"({', '.join(_notation(each, limits) for each in inner)})"
