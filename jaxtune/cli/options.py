"""Types of command-line options, for argparse."""

from argparse import ArgumentTypeError
from pathlib import Path

from jaxtune.config.training_sections import MANY
from jaxtune.config.values import Misfit, Place, conform
from jaxtune.display.escapes import shown
from jaxtune.files.store import is_remote


def filled(text: str) -> str:
    """Returns the value of an option that names something; argparse reports an impossible one."""
    try:
        conform(text, Place)
    except Misfit as misfit:
        raise ArgumentTypeError(f"{shown(text)}: {misfit}") from None
    if not text.strip():
        raise ArgumentTypeError("expected a path or a name, found an empty text")
    return text


def path(text: str) -> Path | str:
    """Returns the path that an option names, with `~` expanded; a URL stays a text."""
    return text if is_remote(filled(text)) else Path(text).expanduser()


def count(text: str) -> int:
    """Returns a number of rows: a whole number from 1 to a billion."""
    return whole(text, 1, MANY)


def largest(text: str) -> int:
    """Returns the largest of the integers from 0 that are to be encoded."""
    return whole(text, 0, 9_999_999)


def whole(text: str, least: int, most: int) -> int:
    """Returns the whole number that an option gives, which must be in a range."""
    if not (text.isdecimal() and len(text) < 20 and least <= int(text) <= most):
        raise ArgumentTypeError(
            f"found {shown(text)}, expected a whole number from {least:,} to {most:,}"
        )
    return int(text)
