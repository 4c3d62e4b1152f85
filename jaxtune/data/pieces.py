"""Keeps decoded parts of tables: in memory up to a limit, and beyond it in a temporary file."""

import os
import tempfile
import threading
import weakref
from typing import Any

from jaxtune.data.errors import DataError

MEMORY = 2**30  # bytes of pieces in memory, over all files


class Pieces:
    """Record batches by number; those beyond `limit` bytes are read back from a temporary file.

    The file has no name: it vanishes with this object or the process.
    """

    def __init__(self, limit: int = MEMORY):
        self._limit, self._held = limit, 0
        self._kept: list[Any] = []  # a record batch, or its (start, end) in the file
        self._file: Any = None
        self._end = 0
        self._lock = threading.Lock()

    def add(self, batch: Any) -> int:
        """Keeps a record batch, and returns its number."""
        with self._lock:
            if self._held + batch.nbytes <= self._limit:
                self._held += batch.nbytes
                self._kept.append(batch)
            else:
                self._kept.append(self._written(batch))
            return len(self._kept) - 1

    def __getitem__(self, number: int) -> Any:
        found = self._kept[number]
        if not isinstance(found, tuple):
            return found
        from pyarrow import ipc

        start, end = found
        data = os.pread(self._file.fileno(), end - start, start)
        return ipc.open_stream(data).read_next_batch()

    def _written(self, batch: Any) -> tuple[int, int]:
        import pyarrow

        out = pyarrow.BufferOutputStream()
        # A stream has the schema and dictionaries of its batch: each piece can be read alone.
        with pyarrow.ipc.new_stream(out, batch.schema) as stream:
            stream.write_batch(batch)
        data = out.getvalue()
        try:
            self._file = self._file or tempfile.TemporaryFile(prefix="jaxtune-")  # noqa: SIM115
            start, view = self._end, memoryview(data)
            while view:
                written = os.pwrite(self._file.fileno(), view, self._end)
                view, self._end = view[written:], self._end + written
        except OSError as error:
            raise DataError(
                f"{tempfile.gettempdir()}: cannot keep decoded rows of Parquet files there: "
                f"{error.strerror}; set TMPDIR to a directory with room for them"
            ) from None
        return start, self._end


_shared: weakref.ref[Pieces] | None = None


def shared() -> Pieces:
    """Returns the pieces that all tables of this process share for as long as one is in use."""
    global _shared
    found = _shared and _shared()
    if found is None:
        found = Pieces()
        _shared = weakref.ref(found)
    return found
