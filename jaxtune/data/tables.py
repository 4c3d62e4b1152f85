"""Reads rows of Parquet files and of Hugging Face datasets."""

import contextlib
import io
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxtune.data.datafile import DataFile, FileRows
from jaxtune.data.errors import DataError, RowError
from jaxtune.data.pieces import Pieces, shared
from jaxtune.files.fetched import known_as

PIECE = 2**18  # bytes of a piece of a row group, about
ROWS = 1024  # rows of a piece, at most
BUFFER = 2**18  # bytes of a column that are read at a time
FOOT = 8  # bytes at the end of a Parquet file: the size of the footer, and a mark


@contextlib.contextmanager
def readable(place: str) -> Iterator[None]:
    """Turns the errors of Arrow about the values of a damaged row into a RowError."""
    import pyarrow

    try:
        yield
    except UnicodeDecodeError as error:
        raise RowError(place, f"not valid UTF-8: {error.reason}") from None
    except (ValueError, OverflowError, pyarrow.ArrowException) as error:
        raise RowError(place, f"damaged: {error}") from None


class Parquet(FileRows):
    """Rows of a Parquet file.

    Parquet gives access to no single row. Each row group is therefore decoded once, when one of its
    rows is needed, and kept in small pieces.
    """

    notes = ()

    def __init__(self, file: Path, pieces: Pieces | None = None):
        import pyarrow
        from pyarrow.parquet import ParquetFile

        self.file, self._pieces = file, pieces or shared()
        self._data = DataFile(file)
        try:
            self._parquet = ParquetFile(_Stream(self._data), buffer_size=BUFFER)
        except (pyarrow.ArrowException, UnicodeDecodeError) as error:
            raise DataError(f"{file}: not a Parquet file: {error}") from None
        about = self._parquet.metadata
        rows = [about.row_group(group).num_rows for group in range(about.num_row_groups)]
        self._ends = np.cumsum(rows, dtype=np.int64)
        self._groups: dict[int, tuple[list[int], np.ndarray]] = {}  # pieces, and ends of their rows
        self._lock = threading.Lock()
        if not len(self):
            raise DataError(f"{file}: the file has no rows")

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        place = self.place(index)
        group = int(np.searchsorted(self._ends, index, side="right"))
        pieces, ends = self._group(group)
        index -= int(self._ends[group - 1]) if group else 0
        number = int(np.searchsorted(ends, index, side="right"))
        batch = self._pieces[pieces[number]]
        with readable(place):
            return batch.slice(index - (int(ends[number]) - batch.num_rows), 1).to_pylist()[0]

    @property
    def _contents(self) -> int:
        """Checksum of the footer, which has the place and mostly the extremes of each column."""
        size = self._data.size
        length = int.from_bytes(self._data.read(size - FOOT, size - FOOT + 4), "little")
        return zlib.crc32(self._data.read(max(0, size - FOOT - length), size))

    def place(self, index: int) -> str:
        """Returns the place of a row: `file:row`, counted from 1."""
        return f"{self.name}:{index + 1}"

    def _group(self, group: int) -> tuple[list[int], np.ndarray]:
        """Returns the pieces of a row group, and the end of each among the rows of the group."""
        if group not in self._groups:
            with self._lock:
                if group not in self._groups:
                    self._groups[group] = self._decoded(group)
        return self._groups[group]

    def _decoded(self, group: int) -> tuple[list[int], np.ndarray]:
        import pyarrow

        about = self._parquet.metadata.row_group(group)
        rows = max(1, min(ROWS, PIECE * about.num_rows // max(1, about.total_byte_size)))
        kept, counts = [], []
        try:
            for batch in self._parquet.iter_batches(rows, row_groups=[group], use_threads=False):
                kept.append(self._pieces.add(batch))
                counts.append(batch.num_rows)
        except (OSError, pyarrow.ArrowException) as error:
            self.check()
            raise DataError(f"{self.name}: row group {group + 1} is damaged: {error}") from None
        if sum(counts) != about.num_rows:
            raise DataError(
                f"{self.name}: row group {group + 1} is damaged: it holds {sum(counts):,} rows, "
                f"and the footer says {about.num_rows:,}"
            )
        return kept, np.cumsum(counts, dtype=np.int64)


class _Stream(io.RawIOBase):
    """A data file as pyarrow reads it: a position, and bytes from there on."""

    def __init__(self, file: DataFile):
        self._file, self._at = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves to an offset from the start, the position or the end; returns the position."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        self._at = origin + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        end = self._file.size if size is None or size < 0 else self._at + size
        found = self._file.read(self._at, min(end, self._file.size))
        self._at += len(found)
        return found


class HuggingFace:
    """Rows of a split of a Hugging Face dataset, on the Hub or written by `save_to_disk`.

    Columns that the library would decode, such as pictures, are returned as they are stored.

    Args:
      name: Id on the Hub, or the directory that `save_to_disk` wrote.
      split: Name of the split; not used for a saved dataset that has only one, without a name.
      revision: Revision on the Hub; None for the default branch. Not used for a directory.
      subset: Configuration on the Hub; None for the default one. Not used for a directory.
    """

    notes = ()

    def __init__(self, name: str, split: str, revision: str | None, subset: str | None):
        self.name, self.split = known_as(name), split
        local = Path(name).is_dir()
        rows = _saved(name, split) if local else _hub(name, split, revision, subset)
        if not len(rows):
            raise DataError(f"{name}: split {split!r} has no rows")
        self._stored = _decodes(rows)
        self._rows = rows.with_format("arrow") if self._stored else rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        with readable(self.place(index)):
            found = self._rows[index]
            return found.to_pylist()[0] if self._stored else found

    @property
    def identity(self) -> list:
        """Name, split and fingerprint, which the datasets library computes from the rows."""
        return [self.name, self.split, self._rows._fingerprint]

    @property
    def files(self) -> list[dict[str, Any]]:
        """The dataset, as `changes` compares it."""
        name, contents = f"{self.name}[{self.split}]", self._rows._fingerprint
        return [{"name": name, "rows": len(self), "contents": contents}]

    def check(self) -> None:
        """Does nothing, as datasets keeps its own copy of the rows or maps that of the user."""

    def place(self, index: int) -> str:
        """Returns the place of a row: `name[split]:row`, counted from 1."""
        return f"{self.name}[{self.split}]:{index + 1}"


def _decodes(rows: Any) -> bool:
    """Returns whether datasets would decode a column, such as pictures, on reading it."""
    from datasets.features.features import require_decoding

    return any(map(require_decoding, rows.features.values()))


def _saved(directory: str, split: str) -> Any:
    import datasets

    try:
        found = datasets.load_from_disk(directory)
    except Exception as error:  # pyarrow, fsspec and datasets raise many kinds for bad files
        raise DataError(f"{directory}: not a dataset saved by save_to_disk: {error}") from None
    if isinstance(found, datasets.Dataset):  # a single split is saved without its name
        return _sound(found, directory)
    if split not in found:
        raise DataError(f"{directory}: no split {split!r}; the splits are {sorted(found)}")
    return _sound(found[split], directory)


def _sound(rows: Any, directory: str) -> Any:
    """Returns the rows of a saved dataset; raises DataError if reading them could end the process.

    Arrow files carry no checksums, and pyarrow follows the offsets in them without a check.
    """
    import pyarrow

    for name, column in zip(rows.column_names, rows.data.columns, strict=True):
        for chunk in column.chunks:
            try:
                chunk.validate(full=True)
            except pyarrow.ArrowException as error:
                if "UTF8" not in str(error):  # checked last, and an error of its row
                    raise DataError(f"{directory}: column {name!r} is damaged: {error}") from None
    return rows


def _hub(name: str, split: str, revision: str | None, subset: str | None) -> Any:
    import datasets

    try:
        return datasets.load_dataset(name, subset, split=split, revision=revision)
    except Exception as error:  # about twenty kinds, from four libraries
        offline = isinstance(error, ConnectionError) or datasets.config.HF_HUB_OFFLINE
        reason = (
            "it is not in the local cache, and the Hub cannot be reached; load it once while "
            "online, or name a directory written by save_to_disk"
            if offline
            else f"{type(error).__name__}: {error}"
        )
        problem = f"neither a local file nor a dataset that can be loaded from the Hub: {reason}"
        raise DataError(f"{name}: {problem}") from error
