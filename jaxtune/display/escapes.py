r"""Texts from outside made safe to print: control characters visible, long values cut.

File names, tensor names, rows, answers of a model and messages of exceptions may hold characters
that would control a terminal. All printing goes through `visible`, or composes texts that did; only
our own colours and the erasing of a status line are written as they are.
"""

import json
import re
import reprlib
from typing import Any, TextIO

MOST = 80  # characters of a value in a message
ALIASES: dict[str, str] = {}  # paths of local copies of remote files -> what people know them as
# C0 controls but tab and line feed, DEL, C1 controls, marks that reorder text, and surrogates.
UNSEEN = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_UNSEEN = re.compile(f"[{UNSEEN}]")
_CONTROL = re.compile(rf"[{UNSEEN}\t\n]")
_LONG = re.compile(r"\S{301,}")


def visible(text: str) -> str:
    r"""Returns a text with control characters as `\x1b`; line breaks and tabs are kept.

    Local copies of remote files are named by their URLs.
    """
    for path, url in ALIASES.items():
        text = text.replace(path, url)
    return _UNSEEN.sub(lambda found: _escape(found[0]), text)


def show(text: str, out: TextIO | None = None) -> None:
    """Prints a text with control characters visible, by default to standard output."""
    print(visible(text), file=out)


def one_line(text: str) -> str:
    r"""Returns a text with all control characters visible, also line breaks, as `\n`."""
    return _CONTROL.sub(lambda found: _escape(found[0]), text)


def controlled(text: str) -> str | None:
    """Returns the first control character of a text as it would be shown, or None."""
    found = _CONTROL.search(text)
    return _escape(found[0]) if found else None


def json_text(content: Any) -> str:
    """Returns indented JSON for people, in which every control character is escaped."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def cut(text: str, most: int = MOST) -> str:
    """Returns a text of at most `most` characters; what is cut off is replaced by `…`."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def shown(value: Any) -> str:
    """Returns a value's repr, cut to 80 characters, whatever its length or depth."""
    return cut(_BRIEF.repr(value))


def unbroken(text: str) -> str:
    """Returns a message in which words of more than 300 characters, such as keys, are cut."""
    return _LONG.sub(lambda found: f"{found[0][:60]}…{found[0][-20:]}", text)


def plural(number: int | float, noun: str, form: str = ",") -> str:
    """Returns a number with its noun, which gets an `s` unless the number reads as 1."""
    written = format(number, form)
    return f"{written} {noun}" + ("" if written == "1" else "s")


def _escape(character: str) -> str:
    named = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}
    code = ord(character)
    return named.get(character) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


class _Brief(reprlib.Repr):
    """A repr that looks at few items of a value, few levels deep."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.fillvalue = 6, "…"
        self.maxstring = self.maxother = 4 * MOST
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = MOST

    def repr_int(self, number: int, level: int) -> str:
        # Python refuses to write out integers of more than some thousand digits.
        if number.bit_length() > 8 * MOST:
            return f"an integer of {number.bit_length():,} bits"
        return repr(number)

    def repr_str(self, text: str, level: int) -> str:
        return repr(text[: self.maxstring])


_BRIEF = _Brief()


def typed(value: Any) -> str:
    """Returns what a value is, for messages, such as "of type int"."""
    return f"of type {type(value).__name__}"
