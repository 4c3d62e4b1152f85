"""Reads data files at any offset, with few of them open at a time, and notices their changes."""

import contextlib
import datetime
import functools
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from jaxtune.data.errors import DataError
from jaxtune.files import special_kind
from jaxtune.files.fetched import known_as
from jaxtune.files.store import is_remote

OPEN = 128  # handles that stay open for the next read, over all files
EVERY = 1.0  # seconds after which a file that is read is compared with what it was at first
NAMED = 5  # changed files that a message lists

About = Mapping[str, Any]  # name, and some of: rows, bytes, written, contents


class FileChanged(DataError):
    """A data file that is no longer what it was when it was first read."""


def stamp(file: Path) -> list:
    """Returns values that change when a file changes: its path, size and modification time.

    A local copy of a remote file counts as that file.
    """
    found = file.stat()
    name = known_as(file)
    return [name if is_remote(name) else str(file.resolve()), found.st_size, found.st_mtime_ns]


def refuse_special(path: Path) -> None:
    """Raises DataError for a directory, a named pipe or whatever else is no regular file."""
    if kind := special_kind(path):
        raise DataError(
            f"{path}: {kind}; expected a regular file, because rows are read in any order and more "
            "than once"
        )


class DataFile:
    """A regular file that must not change while it is in use.

    The file is read and not memory-mapped, because mapped pages would count as the memory of the
    process, and a mapped file that is cut short would end the process.
    """

    def __init__(self, path: Path):
        self.path = path
        refuse_special(path)
        try:
            self._first = _facts(os.stat(path))
            with _HANDLES.of(self):
                self._checked = time.monotonic()
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None

    @property
    def size(self) -> int:
        """Size of the file in bytes, as it was when it was opened."""
        return self._first["bytes"]

    def about(self, rows: int, contents: int) -> dict[str, Any]:
        """Returns what a later start is compared with: counts, time, checksum of the contents."""
        return {"name": known_as(self.path), "rows": rows, **self._first, "contents": contents}

    def read(self, start: int, end: int) -> bytes:
        """Returns the bytes from `start` up to `end`; safe to call from several threads."""
        if time.monotonic() - self._checked > EVERY:
            self.check()
        start, end = int(start), int(end)
        with _HANDLES.of(self) as handle:
            found = os.pread(handle, end - start, start)
        if len(found) < min(end, self.size) - start:
            self.check()
        return found

    def stream(self) -> BinaryIO:
        """Opens the file for reading from its beginning."""
        return open(self.path, "rb")

    def check(self) -> None:
        """Raises FileChanged if the file has another size or modification time than at first."""
        self._checked = time.monotonic()
        try:
            self._compare(os.stat(self.path))
        except OSError as error:
            reason = error.strerror or str(error)
            raise FileChanged(f"{self.path}: cannot be read any more: {reason}") from None

    def open_handle(self) -> int:
        """Opens the file, and returns its descriptor; raises FileChanged if it is another one."""
        handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._compare(os.fstat(handle))
        except BaseException:
            os.close(handle)
            raise
        return handle

    def _compare(self, found: os.stat_result) -> None:
        if differing := _differing(self._first, _facts(found)):
            raise FileChanged(
                f"{self.path}: the file changed while it was in use: {differing}. Restore it and "
                "run the same command again, or use the new one with another --workdir"
            )


class FileRows:
    """What all sources of rows in one file have in common: how the file is compared and checked."""

    file: Path
    _data: DataFile
    _contents: int  # checksum

    @functools.cached_property
    def name(self) -> str:
        """Path or URL of the file, which begins the places of its rows."""
        return known_as(self.file)

    def __len__(self) -> int:
        raise NotImplementedError

    @property
    def identity(self) -> list:
        """Path, size and modification time of the file, and a checksum of its contents."""
        return [*stamp(self.file), self._contents]

    @property
    def files(self) -> list[dict[str, Any]]:
        """The file, as `changes` compares it."""
        return [self._data.about(len(self), self._contents)]

    def check(self) -> None:
        """Raises FileChanged if the file has changed since it was opened."""
        self._data.check()


def changes(before: Sequence[About], now: Sequence[About]) -> list[str]:
    """Returns one line for each file that was added, removed or changed, or none."""
    old, new = ({each["name"]: each for each in files} for files in (before, now))
    lines = [
        *(f"{name}: no longer among the files" for name in old if name not in new),
        *(f"{name}: was not among the files" for name in new if name not in old),
        *(
            f"{name}: {differing}"
            for name in new
            if name in old and (differing := _differing(old[name], new[name]))
        ),
    ]
    more = len(lines) - NAMED
    return [*lines[:NAMED], *([f"and {more:,} more"] if more > 0 else [])]


def _differing(before: About, now: About) -> str:
    """Returns text that names what differs between two states of a file, or "" if nothing does."""
    parts = [
        f"{before[name]:,} {name}, now {now[name]:,}"
        for name in ("rows", "bytes")
        if name in before and before[name] != now.get(name)
    ]
    if before.get("written") != now.get("written"):
        parts.append(f"written {_time(before['written'])}, now {_time(now['written'])}")
    if not parts and before.get("contents") != now.get("contents"):
        parts.append("other contents of the same size")
    return "; ".join(parts)


def _facts(found: os.stat_result) -> dict[str, int]:
    # No inode: some network file systems give a file another one each time.
    return {"bytes": found.st_size, "written": found.st_mtime_ns}


def _time(nanoseconds: int) -> str:
    return f"{datetime.datetime.fromtimestamp(nanoseconds / 1e9):%Y-%m-%d %H:%M:%S.%f}"[:-3]


class _Handles:
    """Descriptors of files: the most recently used stay open for the next read."""

    def __init__(self):
        self._idle: OrderedDict[DataFile, int] = OrderedDict()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def of(self, file: DataFile) -> Iterator[int]:
        """Lends a descriptor of a file, which nobody else uses or closes during the block."""
        with self._lock:
            handle = self._idle.pop(file, None)
        handle = file.open_handle() if handle is None else handle
        try:
            yield handle
        finally:
            with self._lock:
                surplus = [handle] if file in self._idle else []
                self._idle.setdefault(file, handle)
                while len(self._idle) > OPEN:
                    surplus.append(self._idle.popitem(last=False)[1])
            for each in surplus:
                os.close(each)


_HANDLES = _Handles()
