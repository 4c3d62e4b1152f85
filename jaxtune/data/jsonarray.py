"""Reads rows of a JSON file that holds one array; one pass finds where its elements begin."""

import json
import re
import zlib
from array import array
from pathlib import Path
from typing import Any

import numpy as np

from jaxtune.data.datafile import FileRows
from jaxtune.data.errors import DataError, RowError
from jaxtune.data.textfiles import JsonLines, Text, decoded, json_object, some_rows
from jaxtune.display.errors import UserError

BLOCK = 2**22  # bytes read at a time while looking for elements
LARGEST = 2**28  # bytes of an element
SPACE = re.compile(r"[ \t\r\n]*")


class NoArrayError(UserError):
    """A file that begins like an array, but does not end with it."""


def open_json(file: Path) -> "JsonLines | JsonArray":
    """Opens a file of one JSON object per line, or of one JSON array of objects."""
    text = Text(file)
    head, at = b"", text.begin
    while not head and at < text.size:
        head, at = text.read(at, at + 2**16).lstrip(), at + 2**16
    if head.startswith(b"["):
        try:
            return JsonArray(text)
        except NoArrayError:
            pass  # lines, of which the first is an array: an error of that row
        except DataError:
            if file.suffix.lower() == ".json":
                raise
    return JsonLines(file)


class JsonArray(FileRows):
    """Rows of a file with one JSON array, on one line or on many; elements are read one by one."""

    def __init__(self, text: Text):
        self.file, self._data = text.path, text
        starts, numbers, self._contents = _Scan(text).elements()
        self._starts, self._numbers = (np.frombuffer(each, np.int64) for each in (starts, numbers))
        some_rows(self, "expected an array of objects")
        self.notes = (f"{self.file}: one JSON array of {len(self):,} rows",)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index, place = range(len(self))[index], self.place(index)
        text = decoded(self._data.read(self._starts[index], self._starts[index + 1]), place)
        try:
            record, _ = json.JSONDecoder().raw_decode(text)  # a comma or bracket follows
        except (ValueError, RecursionError) as error:
            raise RowError(place, f"not valid JSON: {error}") from None
        return json_object(record, place, "an array of objects")

    def place(self, index: int) -> str:
        """Returns the place where a row begins: `file:line`."""
        return f"{self.name}:{self._numbers[index]}"


class _Scan:
    """Finds the elements of an array; holds one block of the file, or one element if it is larger.

    The text is decoded as Latin-1, in which each byte is one character: what separates elements is
    ASCII, and offsets in the text are offsets in the file.
    """

    def __init__(self, file: Text):
        self._file, self._stream = file, file.stream()
        self._base, self._text, self._at = 0, "", 0  # offset of the text, and position in it
        self._line, self._counted = 1, 0  # line of the position that line breaks are counted to
        self._contents, self._ended = 0, False
        self._decode = json.JSONDecoder().raw_decode

    def elements(self) -> tuple[array, array, int]:
        """Returns the offset of each element and of the end, the lines, and a checksum."""
        starts, numbers = array("q"), array("q")
        with self._stream:
            self._more(BLOCK + self._file.begin)
            self._at = self._file.begin
            self._next()
            self._at += 1  # the opening bracket
            separator = self._next()
            while separator != "]":
                numbers.append(self._number())
                starts.append(self._base + self._at)
                self._element()
                separator = self._next()
                if separator not in (",", "]"):
                    raise self._error("not valid JSON: expected a comma or the end of the array")
                if separator == ",":
                    self._at += 1
                    self._next()
            starts.append(self._base + self._at)
            self._at += 1
            if self._next():
                raise NoArrayError
        return starts, numbers, self._contents

    def _next(self) -> str:
        """Moves to the next character that is no white space and returns it, or "" at the end."""
        while True:
            self._at = SPACE.match(self._text, self._at).end()
            if self._at < len(self._text) or not self._more(BLOCK):
                return self._text[self._at : self._at + 1]

    def _element(self) -> None:
        """Moves past an element."""
        size = BLOCK
        while True:
            try:
                end = self._decode(self._text, self._at)[1]
            except RecursionError:
                raise self._error("not valid JSON: nested too deeply") from None
            except json.JSONDecodeError as error:
                # Close to the end of the block, or in a string that has no end, more may follow.
                cut = error.msg.startswith("Unterminated") or error.pos > len(self._text) - 16
                long = len(self._text) - self._at > LARGEST
                if not cut or long or not self._more(size):
                    raise self._error(f"not valid JSON: {error.msg}", error.pos) from None
                size *= 2
                continue
            if end < len(self._text) or not self._more(size):  # a number may go on
                self._at = end
                return

    def _more(self, size: int) -> bool:
        """Reads on, and forgets the text before the position; returns whether there was more."""
        self._number()
        block = self._stream.read(size)
        self._contents = zlib.crc32(block, self._contents)
        self._base += self._at
        self._text, self._at, self._counted = self._text[self._at :] + block.decode("latin-1"), 0, 0
        return bool(block)

    def _number(self) -> int:
        """Returns the line of the position, counted from 1."""
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line

    def _error(self, problem: str, at: int | None = None) -> DataError:
        line = self._number() + self._text.count("\n", self._at, self._at if at is None else at)
        return DataError(
            f"{self._file.path}:{line}: {problem}; expected one JSON array of objects, or one JSON "
            "object per line"
        )
