"""Distinguishes special tokens in templates from their names in data, which are plain text."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jaxtune.data.backends import Special
from jaxtune.display.errors import UserError

# Unicode reserves U+FDD0 to U+FDEF for use inside programs, so no text contains them.
OPEN, CLOSE = "\ufdd0", "\ufdd1"
MARKS = re.compile("[\ufdd0-\ufdef]")
ESCAPED = re.compile(r"(?<!\\)((?:\\\\)*)\\u(fdd[01])")  # a mark in Python's repr of a text


@dataclass(frozen=True)
class Piece:
    """A run of plain text or a special token, with its offset in the whole text."""

    text: str
    start: int
    id: int | None = None  # only of a special token

    @property
    def end(self) -> int:
        return self.start + len(self.text)


class Markup:
    """Finds the special tokens of a vocabulary in text."""

    def __init__(self, specials: Mapping[str, Special]):
        self.specials = specials
        longest = sorted(filter(None, specials), key=len, reverse=True)
        either = "|".join(map(re.escape, longest)) or "(?!)"  # a pattern that matches nothing
        self._special = re.compile(either)
        self._quoted_or_special = re.compile(f"{OPEN}(?:{either}){CLOSE}|({either})")

    def quote(self, value: Any, name: str = "the text") -> Any:
        """Marks text, or lists and mappings of it, so that its special tokens stay text.

        `name` says in errors which text it is.
        """
        if isinstance(value, str):
            if problem := text_problem(value):
                raise UserError(f"{name} {problem}")
            return self._special.sub(f"{OPEN}\\g<0>{CLOSE}", value)
        if isinstance(value, Mapping):
            return {
                self.quote(key, name): self.quote(each, f"{name}[{key!r}]")
                for key, each in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.quote(each, f"{name}[{n}]") for n, each in enumerate(value)]
        return value

    def pieces(self, text: str) -> Iterator[Piece]:
        """Splits a text at its special tokens, except quoted ones."""
        start, eats = 0, False  # `eats`: the last token removes spaces after it
        found = [match for match in self._quoted_or_special.finditer(text) if match[1]]
        for match in [*found, None]:
            special = self.specials[match[1]] if match else None
            end = match.start() if match else len(text)
            if eats:
                start += len(text[start:end]) - len(text[start:end].lstrip())
            plain = text[start:end]
            plain = plain.rstrip() if special and special.lstrip else plain
            if plain:
                yield Piece(plain, start)
            if special:
                yield Piece(special.text, end, special.id)
                start, eats = end + len(special.text), special.rstrip

    def broken(self, text: str) -> list[str]:
        """Splits a text so that no part contains a whole special token."""
        cuts = [match.start() + 1 for match in self._special.finditer(text)]
        return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def half_character(text: str) -> str | None:
    """Returns what is wrong with a text that UTF-8 cannot encode, or None if it can.

    Such a text contains one half of a surrogate pair without the other.
    """
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        return (
            f"contains half of a character (the lone surrogate U+{code:04X}) at position "
            f"{error.start}; remove or replace it"
        )
    return None


def text_problem(text: str) -> str | None:
    """Returns why a text cannot be used, or None if it can."""
    if MARKS.search(text):
        return "contains a Unicode noncharacter (U+FDD0 to U+FDEF); remove it"
    return half_character(text)


def check_texts(value: Any, name: str) -> None:
    """Raises ValueError, with the path to it, for a text within a value that is not valid."""
    pending = [(name, value)]
    while pending:
        path, each = pending.pop()
        if isinstance(each, str):
            if problem := half_character(each):
                raise UserError(f"{path} {problem}")
        elif isinstance(each, Mapping):
            pending += [(path, key) for key in each]
            pending += [(f"{path}[{key!r}]", inner) for key, inner in each.items()]
        elif isinstance(each, list | tuple):
            pending += [(f"{path}[{n}]", inner) for n, inner in enumerate(each)]


def repr_with_marks(value: Any) -> str:
    """Returns the text of a value whose texts are quoted.

    Within lists and mappings, Python writes the marks as escapes; here they stay marks.
    """
    text = str(value)
    if isinstance(value, str) or "\\ufdd" not in text:
        return text
    return ESCAPED.sub(lambda found: found[1] + chr(int(found[2], 16)), text)


def unmarked(text: str) -> str:
    """Returns quoted text without its marks."""
    return MARKS.sub("", text)
