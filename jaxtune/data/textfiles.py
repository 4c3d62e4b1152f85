"""Reads rows of JSON lines and delimited text; one pass over the file finds where they begin."""

import csv
import itertools
import json
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxtune.data.datafile import DataFile, FileRows
from jaxtune.data.errors import DataError, RowError
from jaxtune.display.escapes import plural

BLOCK = 2**24  # bytes read at a time while looking for lines
BOM = b"\xef\xbb\xbf"
WIDE = (b"\xff\xfe", b"\xfe\xff")  # byte order marks of UTF-16
NEWLINE = ord("\n")
SPACES = np.frombuffer(b" \t\r\n\v\f", np.uint8)
KINDS = {list: "array", str: "string", bool: "boolean", type(None): "null"}
NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}  # of delimiters
SAMPLE = 20  # rows whose numbers of fields tell the delimiter
LONGEST = 2**31 - 1  # characters in a CSV field; the default limit of the csv module is 131,072


class JsonLines(FileRows):
    """Rows of a file with one JSON object per line; blank lines are skipped."""

    notes = ()

    def __init__(self, file: Path):
        self.file = file
        self._data = Text(file)
        starts, doubtful, self._contents = _line_starts(self._data)
        starts = np.append(starts, self._data.size)
        blank = [n for n in doubtful if not self._data.read(starts[n], starts[n + 1]).strip()]
        kept = np.delete(np.arange(len(starts)), blank) if blank else None
        # With blank lines, line numbers differ from row indices.
        self._starts, self._numbers = (starts, None) if kept is None else (starts[kept], kept)
        some_rows(self, "expected one JSON object per line")

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        line = self._data.read(self._starts[index], self._starts[index + 1])
        text = decoded(line, self.place(index))
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RowError(self.place(index), f"not valid JSON: {error}{_hint(text)}") from None
        return json_object(record, self.place(index), "one object per line")

    def place(self, index: int) -> str:
        """Returns the place of a row: `file:line`."""
        line = index if self._numbers is None else self._numbers[index]
        return f"{self.name}:{line + 1}"


class Delimited(FileRows):
    """Rows of a CSV or TSV file with a header; a quoted field may contain line breaks.

    The delimiter is `usual`, unless only another one splits the first rows as it does the header.
    """

    def __init__(self, file: Path, usual: str):
        self.file = file
        self._data = Text(file)
        csv.field_size_limit(LONGEST)
        self.delimiter = _delimiter(self._data, usual)
        self.notes = (
            (f"{file}: fields are separated by {NAMES[self.delimiter]}",)
            if self.delimiter != usual
            else ()
        )
        starts, self._numbers, self._contents = _record_starts(self._data, self.delimiter)
        self._starts = np.append(starts, self._data.size)  # the header first
        some_rows(self, "expected a header followed by rows")
        self.columns = self._fields(0)
        repeated = sorted({name for name in self.columns if self.columns.count(name) > 1})
        if repeated:
            raise DataError(f"{self._at(0)}: the header has {repeated} more than once")

    def __len__(self) -> int:
        return max(0, len(self._numbers) - 1)

    def __getitem__(self, index: int) -> dict[str, str]:
        index = range(len(self))[index]
        fields = self._fields(index + 1)
        if len(fields) != len(self.columns):
            problem = (
                f"found {plural(len(fields), 'field')}, but the header has {len(self.columns)}"
            )
            raise RowError(self.place(index), problem)
        return dict(zip(self.columns, fields, strict=True))

    def place(self, index: int) -> str:
        """Returns the place where a row begins: `file:line`."""
        return self._at(index + 1)

    def _at(self, record: int) -> str:
        return f"{self.name}:{self._numbers[record]}"

    def _fields(self, record: int) -> list[str]:
        text = self._data.read(self._starts[record], self._starts[record + 1])
        lines = enumerate(text.splitlines(keepends=True), self._numbers[record])
        fields = (decoded(line, f"{self.file}:{number}") for number, line in lines)
        try:
            return next(csv.reader(fields, delimiter=self.delimiter, strict=True))
        except csv.Error as error:
            raise RowError(self._at(record), f"cannot be split into fields: {error}") from None


class Text(DataFile):
    """A file of text in UTF-8 that is not empty; it begins after the byte order mark, if any."""

    def __init__(self, path: Path):
        super().__init__(path)
        head = self.read(0, len(BOM))
        if not head:
            raise DataError(f"{path}: the file is empty")
        if head.startswith(WIDE):
            raise DataError(f"{path}: the file is UTF-16; save it as UTF-8")
        self.begin = len(BOM) if head == BOM else 0


def some_rows(source: Any, expected: str) -> None:
    """Raises DataError if a file has no rows; `expected` says what they would look like."""
    if not len(source):
        raise DataError(f"{source.file}: the file has no rows; {expected}")


def json_object(record: Any, place: str, expected: str) -> dict[str, Any]:
    """Returns a parsed row if it is an object; raises RowError for any other value."""
    if not isinstance(record, dict):
        kind = KINDS.get(type(record), "number")
        raise RowError(place, f"found a JSON {kind}, expected {expected}")
    return record


def decoded(line: bytes, place: str) -> str:
    """Returns the text of a row; raises RowError if it is not UTF-8."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte {error.start + 1} of the line is 0x{line[error.start]:02x}"
        raise RowError(place, f"not valid UTF-8: {byte}; save the file as UTF-8") from None


def _line_starts(file: Text) -> tuple[np.ndarray, list[int], int]:
    """Returns the offset of each line (int64), lines that may be blank, and the file's checksum."""
    starts, doubtful, lines, offset, contents = [], [0], 0, 0, 0
    begins = True  # whether the next byte begins a line
    with file.stream() as stream:
        while block := stream.read(BLOCK):
            contents = zlib.crc32(block, contents)
            text = np.frombuffer(block, np.uint8)
            first = np.flatnonzero(text == NEWLINE) + 1
            first = np.concatenate([np.zeros(int(begins), np.int64), first[first < len(text)]])
            doubtful += (np.flatnonzero(np.isin(text[first], SPACES)) + lines).tolist()
            starts.append(first + offset)
            lines, offset, begins = lines + len(first), offset + len(block), block.endswith(b"\n")
    found = np.concatenate(starts)
    found[0] = file.begin
    return found, doubtful, contents


def _record_starts(file: Text, delimiter: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns the offset and line of each row (int64), the header first, and a checksum."""
    starts, numbers = array("q"), array("q")
    with file.stream() as stream:
        lines = _Counted(stream, file.begin)
        # Latin-1 decodes any bytes, and quotes and line breaks are the same bytes in UTF-8.
        reader = csv.reader(lines, delimiter=delimiter)
        try:
            while True:
                start, number = lines.offset, lines.number + 1
                if next(reader):  # a blank line has no fields
                    starts.append(start)
                    numbers.append(number)
        except StopIteration:
            found = np.frombuffer(starts, np.int64), np.frombuffer(numbers, np.int64)
            return *found, lines.contents
        except csv.Error as error:
            raise DataError(f"{file.path}:{lines.number}: {error}") from None


class _Counted:
    """Lines of a stream, with its position in bytes and lines, and a checksum of what was read."""

    def __init__(self, stream, offset: int):
        stream.seek(offset)
        self.stream, self.offset, self.number, self.contents = stream, offset, 0, 0

    def __iter__(self) -> Iterator[str]:
        for line in self.stream:
            self.offset += len(line)
            self.number += 1
            self.contents = zlib.crc32(line, self.contents)
            yield line.decode("latin-1")


def _delimiter(file: Text, usual: str) -> str:
    """Returns the delimiter that splits the first rows as it does the header, or the usual one."""

    def fits(delimiter: str) -> bool:
        with file.stream() as stream:
            rows = filter(None, csv.reader(_Counted(stream, file.begin), delimiter=delimiter))
            try:
                header, *more = (len(row) for row in itertools.islice(rows, SAMPLE))
            except (ValueError, csv.Error):  # ValueError: no header
                return False
        return header > 1 and all(fields == header for fields in more)

    return next(filter(fits, (usual, *(each for each in NAMES if each != usual))), usual)


def _hint(text: str) -> str:
    """Returns advice for an error message if a line seems to be part of a whole JSON document."""
    whole = text.strip() in ("[", "{") or text.lstrip().startswith("[")
    return "; expected one JSON object per line, or one array of objects" if whole else ""
