"""Reads rows of JSON lines and delimited text; one pass over the file finds where they begin."""

import csv
import json
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxtune.data.errors import DataError, RowError
from jaxtune.display.escapes import plural

BLOCK = 2**24  # bytes read at a time while looking for lines
BOM = b"\xef\xbb\xbf"
WIDE = (b"\xff\xfe", b"\xfe\xff")  # byte order marks of UTF-16
NEWLINE = ord("\n")
SPACES = np.frombuffer(b" \t\r\n\v\f", np.uint8)
KINDS = {list: "array", str: "string", bool: "boolean", type(None): "null"}
LONGEST = 2**31 - 1  # characters in a CSV field; the default limit of the csv module is 131,072


def stamp(file: Path) -> list:
    """Returns values that change when a file changes: its path, size and modification time."""
    found = file.stat()
    return [str(file.resolve()), found.st_size, found.st_mtime_ns]


class JsonLines:
    """Rows of a file with one JSON object per line; blank lines are skipped."""

    def __init__(self, file: Path):
        self.file = file
        self._text = _Text(file)
        starts, doubtful = _line_starts(file, self._text.begin)
        starts = np.append(starts, self._text.size)
        blank = [n for n in doubtful if not self._text.read(starts[n], starts[n + 1]).strip()]
        kept = np.delete(np.arange(len(starts)), blank) if blank else None
        # With blank lines, line numbers differ from row indices.
        self._starts, self._numbers = (starts, None) if kept is None else (starts[kept], kept)
        _some_rows(self, "expected one JSON object per line")

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        line = self._text.read(self._starts[index], self._starts[index + 1])
        text = _decoded(line, self.place(index))
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RowError(self.place(index), f"not valid JSON: {error}{_hint(text)}") from None
        if not isinstance(record, dict):
            kind = KINDS.get(type(record), "number")
            problem = f"found a JSON {kind}, expected one object per line{_hint(text)}"
            raise RowError(self.place(index), problem)
        return record

    @property
    def identity(self) -> list:
        """Path, size and modification time of the file."""
        return stamp(self.file)

    def place(self, index: int) -> str:
        """Returns the place of a row: `file:line`."""
        line = index if self._numbers is None else self._numbers[index]
        return f"{self.file}:{line + 1}"


class Delimited:
    """Rows of a CSV or TSV file with a header; a quoted field may contain line breaks."""

    def __init__(self, file: Path, delimiter: str):
        self.file, self.delimiter = file, delimiter
        self._text = _Text(file)
        csv.field_size_limit(LONGEST)
        starts, self._numbers = _record_starts(file, self._text.begin, delimiter)
        self._starts = np.append(starts, self._text.size)  # the header first
        _some_rows(self, "expected a header followed by rows")
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

    @property
    def identity(self) -> list:
        """Path, size and modification time of the file."""
        return stamp(self.file)

    def place(self, index: int) -> str:
        """Returns the place where a row begins: `file:line`."""
        return self._at(index + 1)

    def _at(self, record: int) -> str:
        return f"{self.file}:{self._numbers[record]}"

    def _fields(self, record: int) -> list[str]:
        text = self._text.read(self._starts[record], self._starts[record + 1])
        lines = enumerate(text.splitlines(keepends=True), self._numbers[record])
        decoded = (_decoded(line, f"{self.file}:{number}") for number, line in lines)
        try:
            return next(csv.reader(decoded, delimiter=self.delimiter, strict=True))
        except csv.Error as error:
            raise RowError(self._at(record), f"cannot be split into fields: {error}") from None


class _Text:
    """Bytes of a readable file that is not empty.

    The file is read and not memory-mapped, because mapped pages would count as the memory of the
    process.
    """

    def __init__(self, file: Path):
        try:
            self._stream = open(file, "rb")  # noqa: SIM115, open as long as this object
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error.strerror or error}") from None
        self.size = os.fstat(self._stream.fileno()).st_size
        head = self.read(0, len(BOM))
        if not head:
            raise DataError(f"{file}: the file is empty")
        if head.startswith(WIDE):
            raise DataError(f"{file}: the file is UTF-16; save it as UTF-8")
        self.begin = len(BOM) if head == BOM else 0

    def read(self, start: int, end: int) -> bytes:
        """Returns the bytes from `start` up to `end`; safe to call from several threads."""
        return os.pread(self._stream.fileno(), int(end) - int(start), int(start))


def _some_rows(source: JsonLines | Delimited, expected: str) -> None:
    if not len(source):
        raise DataError(f"{source.file}: the file has no rows; {expected}")


def _line_starts(file: Path, begin: int) -> tuple[np.ndarray, list[int]]:
    """Returns the offset of each line (int64), and the lines that may be blank."""
    starts, doubtful, lines, offset = [], [0], 0, 0
    begins = True  # whether the next byte begins a line
    with open(file, "rb") as stream:
        while block := stream.read(BLOCK):
            text = np.frombuffer(block, np.uint8)
            first = np.flatnonzero(text == NEWLINE) + 1
            first = np.concatenate([np.zeros(int(begins), np.int64), first[first < len(text)]])
            doubtful += (np.flatnonzero(np.isin(text[first], SPACES)) + lines).tolist()
            starts.append(first + offset)
            lines, offset, begins = lines + len(first), offset + len(block), block.endswith(b"\n")
    found = np.concatenate(starts)
    found[0] = begin
    return found, doubtful


def _record_starts(file: Path, begin: int, delimiter: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the offset and line number of each row, the header first (both int64)."""
    starts, numbers = array("q"), array("q")
    with open(file, "rb") as stream:
        lines = _Counted(stream, begin)
        # Latin-1 decodes any bytes, and quotes and line breaks are the same bytes in UTF-8.
        reader = csv.reader(lines, delimiter=delimiter)
        try:
            while True:
                start, number = lines.offset, lines.number + 1
                if next(reader):  # a blank line has no fields
                    starts.append(start)
                    numbers.append(number)
        except StopIteration:
            return np.frombuffer(starts, np.int64), np.frombuffer(numbers, np.int64)
        except csv.Error as error:
            raise DataError(f"{file}:{lines.number}: {error}") from None


class _Counted:
    """Lines of a stream; `offset` and `number` are its position in bytes and lines."""

    def __init__(self, stream, offset: int):
        stream.seek(offset)
        self.stream, self.offset, self.number = stream, offset, 0

    def __iter__(self) -> Iterator[str]:
        for line in self.stream:
            self.offset += len(line)
            self.number += 1
            yield line.decode("latin-1")


def _decoded(line: bytes, place: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte {error.start + 1} of the line is 0x{line[error.start]:02x}"
        raise RowError(place, f"not valid UTF-8: {byte}; save the file as UTF-8") from None


def _hint(text: str) -> str:
    """Returns advice for an error message if a line seems to be part of a whole JSON document."""
    whole = text.strip() in ("[", "{") or text.lstrip().startswith("[")
    return "; convert an array or an indented document to JSON lines" if whole else ""
