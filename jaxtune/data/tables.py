"""Reads rows of Parquet files and of Hugging Face datasets."""

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from jaxtune.data.errors import DataError
from jaxtune.data.textfiles import stamp

CACHE = 2**30  # bytes of row groups kept in memory


class Parquet:
    """Rows of a Parquet file; row groups are read when they are needed."""

    def __init__(self, file: Path, cache: int = CACHE):
        import pyarrow
        from pyarrow.parquet import ParquetFile

        self.file, self._cache = file, cache
        try:
            self._parquet = ParquetFile(file, memory_map=True)
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error.strerror or error}") from None
        except pyarrow.ArrowException as error:
            raise DataError(f"{file}: not a Parquet file: {error}") from None
        about = self._parquet.metadata
        rows = [about.row_group(group).num_rows for group in range(about.num_row_groups)]
        self._ends = np.cumsum(rows, dtype=np.int64)
        self._groups: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()
        if not len(self):
            raise DataError(f"{file}: the file has no rows")

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        group = int(np.searchsorted(self._ends, index, side="right"))
        table = self._group(group)
        return table.slice(index - (int(self._ends[group]) - table.num_rows), 1).to_pylist()[0]

    @property
    def identity(self) -> list:
        """Path, size and modification time of the file."""
        return stamp(self.file)

    def place(self, index: int) -> str:
        """Returns the place of a row: `file:row`, counted from 1."""
        return f"{self.file}:{index + 1}"

    def _group(self, group: int) -> Any:
        """Returns a row group, from a cache that drops the least recently used but keeps one."""
        import pyarrow

        with self._lock:
            if group not in self._groups:
                try:
                    self._groups[group] = self._parquet.read_row_group(group)
                except (OSError, pyarrow.ArrowException) as error:
                    problem = f"row group {group + 1} is damaged: {error}"
                    raise DataError(f"{self.file}: {problem}") from None
            self._groups.move_to_end(group)
            while len(self._groups) > 1 and self._held() > self._cache:
                self._groups.popitem(last=False)
            return self._groups[group]

    def _held(self) -> int:
        return sum(table.nbytes for table in self._groups.values())


class HuggingFace:
    """Rows of a split of a Hugging Face dataset, on the Hub or written by `save_to_disk`.

    Columns that the library would decode, such as pictures, are returned as they are stored.

    Args:
      name: Id on the Hub, or the directory that `save_to_disk` wrote.
      split: Name of the split; not used for a saved dataset that has only one, without a name.
      revision: Revision on the Hub; None for the default branch. Not used for a directory.
      subset: Configuration on the Hub; None for the default one. Not used for a directory.
    """

    def __init__(self, name: str, split: str, revision: str | None, subset: str | None):
        self.name, self.split = name, split
        local = Path(name).is_dir()
        rows = _saved(name, split) if local else _hub(name, split, revision, subset)
        if not len(rows):
            raise DataError(f"{name}: split {split!r} has no rows")
        self._stored = _decodes(rows)
        self._rows = rows.with_format("arrow") if self._stored else rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        found = self._rows[range(len(self))[index]]
        return found.to_pylist()[0] if self._stored else found

    @property
    def identity(self) -> list:
        """Name, split and fingerprint, which the datasets library computes from the rows."""
        return [self.name, self.split, self._rows._fingerprint]

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
        return found
    if split not in found:
        raise DataError(f"{directory}: no split {split!r}; the splits are {sorted(found)}")
    return found[split]


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
