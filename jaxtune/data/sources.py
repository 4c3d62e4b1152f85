"""Opens files, globs and datasets as sources of rows with random access and a place each."""

import difflib
import glob
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxtune.data.datafile import refuse_special
from jaxtune.data.errors import FEW, DataError, RowError
from jaxtune.data.jsonarray import open_json
from jaxtune.data.tables import HuggingFace, Parquet
from jaxtune.data.textfiles import Delimited
from jaxtune.display.errors import UserError
from jaxtune.display.escapes import typed
from jaxtune.files.fetched import FILES_AT_ONCE, local, matches
from jaxtune.files.store import is_remote
from jaxtune.files.store import split as split_url

READERS = {
    ".jsonl": open_json,
    ".ndjson": open_json,
    ".json": open_json,
    ".csv": lambda file: Delimited(file, ","),
    ".tsv": lambda file: Delimited(file, "\t"),
    ".parquet": Parquet,
}
# Further suffixes that a file has, and no dataset on the Hub.
UNREAD = (".txt", ".md", ".log", ".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz", ".xlsx")
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
SAVED = ("state.json", "dataset_dict.json")  # one of them is in a save_to_disk directory


class Source(Protocol):
    """Rows by index; reading a malformed row raises RowError."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @property
    def identity(self) -> list:
        """Plain values that change when the rows change."""
        ...

    @property
    def files(self) -> list[dict[str, Any]]:
        """The files, as `datafile.changes` compares them."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """Lines that tell the user what was detected, such as an unusual delimiter."""
        ...

    def check(self) -> None:
        """Raises FileChanged if a file has changed since it was opened."""
        ...

    def place(self, index: int) -> str:
        """Returns the place of a row: `file:line`, or `file:row` for files without lines."""
        ...


def open_source(
    spec: str | Path | Sequence[str | Path],
    *,
    split: str = "train",
    revision: str | None = None,
    subset: str | None = None,
    limit: int | None = None,
) -> Source:
    """Opens a file, a glob, a dataset (Hub id or saved directory), or a list of these.

    Args:
      spec: What to open; the suffix tells JSON lines, CSV, TSV and Parquet apart.
      split: Split of a dataset; files have none.
      revision: Revision of a dataset on the Hub; None for the default branch.
      subset: Configuration of a dataset on the Hub; None for the default one.
      limit: Number of rows to keep from the beginning; None keeps all.

    Returns:
      The rows, one source after another.
    """
    specs = [spec] if isinstance(spec, str | Path) else list(spec)
    if not specs:
        raise DataError("no data: expected a file, a glob or a dataset, found an empty list")
    try:
        found = [each for one in specs for each in _opened(str(one), split, revision, subset)]
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from None
    source = found[0] if len(found) == 1 else Joined(found)
    return first(source, limit)


class Joined:
    """Several sources, one after another."""

    def __init__(self, sources: Sequence[Source]):
        self.sources = list(sources)
        self._ends = np.cumsum([len(source) for source in self.sources])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        source, index = self._within(range(len(self))[index])
        return source[index]

    @property
    def identity(self) -> list:
        """Identities of all sources."""
        return [source.identity for source in self.sources]

    @property
    def files(self) -> list[dict[str, Any]]:
        """Files of all sources."""
        return [file for source in self.sources for file in source.files]

    @property
    def notes(self) -> list[str]:
        """The first notes of the sources, and how many more there are."""
        notes = [note for source in self.sources for note in source.notes]
        more = [f"and {len(notes) - FEW:,} files more like these"] if len(notes) > FEW else []
        return [*notes[:FEW], *more]

    def check(self) -> None:
        """Raises FileChanged if a file has changed since it was opened."""
        for source in self.sources:
            source.check()

    def place(self, index: int) -> str:
        """Returns the place of a row in its own file."""
        source, index = self._within(index)
        return source.place(index)

    def _within(self, index: int) -> tuple[Source, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        source = self.sources[number]
        return source, index - (int(self._ends[number]) - len(source))


class Listed:
    """Source of rows that are in memory already, as dictionaries."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]):
        if not isinstance(rows, Sequence) or isinstance(rows, str) or not rows:
            raise UserError(f"rows is {repr(rows)[:60]}; expected a list of one dictionary or more")
        self.rows = rows
        self.files: list[dict[str, Any]] = []
        self.notes: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        if not isinstance(row, Mapping):
            raise RowError(self.place(index), f"it is {typed(row)}; expected a dictionary")
        return dict(row)

    @property
    def identity(self) -> list:
        """Number and checksum of the rows."""
        return [len(self.rows), zlib.crc32(repr([*self.rows]).encode())]

    def check(self) -> None:
        """Does nothing: there is no file that could have changed."""

    def place(self, index: int) -> str:
        """Returns the number of a row, from 0."""
        return f"row {index}"


class Chosen:
    """Some rows of a source, by their indices in it."""

    def __init__(self, source: Source, rows: Sequence[int]):
        self.source, self.rows = source, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[int(self.rows[index])]

    @property
    def identity(self) -> list:
        """Identity of the source and of the chosen rows."""
        chosen = np.asarray(self.rows, np.int64)
        return [self.source.identity, len(chosen), zlib.crc32(chosen.tobytes())]

    @property
    def files(self) -> list[dict[str, Any]]:
        """Files of the source."""
        return self.source.files

    @property
    def notes(self) -> Sequence[str]:
        """Notes of the source."""
        return self.source.notes

    def check(self) -> None:
        """Raises FileChanged if a file has changed since it was opened."""
        self.source.check()

    def place(self, index: int) -> str:
        """Returns the place of a row in its file."""
        return self.source.place(int(self.rows[index]))


def first(source: Source, limit: int | None) -> Source:
    """Returns the first `limit` rows of a source, or all if there are fewer."""
    if limit is None or limit >= len(source):
        return source
    if limit < 1:
        raise UserError(f"limit is {limit}; expected 1 row or more")
    return Chosen(source, range(limit))


def set_apart(source: Source, count: int) -> tuple[Source, Source]:
    """Splits a source at random into (the rest, `count` rows), the same in every run."""
    if not 0 < count < len(source):
        raise DataError(
            f"cannot hold out {count:,} of {len(source):,} rows: both parts need at least one row"
        )
    order = np.random.RandomState(0).permutation(len(source))  # NumPy has frozen this stream
    return Chosen(source, np.sort(order[count:])), Chosen(source, np.sort(order[:count]))


def folder(place: str) -> str:
    """Returns the folder of the file that a place names, a path or a URL."""
    file = place.rpartition(":")[0]
    return split_url(file)[0] if is_remote(file) else os.path.dirname(file)


def on_hub(spec: str) -> bool:
    """Returns whether a source is a dataset on the Hub, by its name and because no such file is."""
    path = Path(spec).expanduser()
    suffixed = is_remote(spec) or path.suffix.lower() in (*READERS, *UNREAD)
    return not suffixed and not path.exists() and bool(HUB_NAME.fullmatch(spec))


def natural(path: str) -> list[Any]:
    """Returns a sort key under which `part-2` comes before `part-10`."""
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", path)]


def _opened(spec: str, split: str, revision: str | None, subset: str | None) -> list[Source]:
    if is_remote(spec):
        return _remote(spec, split)
    path = Path(spec).expanduser()
    if path.is_dir():
        return [_saved(path, split)]
    if on_hub(spec):
        return [HuggingFace(spec, split, revision, subset)]
    if path.exists() or not glob.has_magic(spec):
        return [_file(path)]
    matches = sorted(glob.glob(str(path), recursive=True), key=natural)
    if not matches:
        raise DataError(f"{spec}: no file matches")
    return [_file(Path(match)) for match in matches]


def _remote(url: str, split: str) -> list[Source]:
    """Opens the copies of a remote file, of all that a glob matches, or of a saved dataset."""
    try:
        if not glob.has_magic(url):
            path = local(url)
            return [_saved(path, split) if path.is_dir() else _file(path)]
        if matching := sorted(matches(url), key=natural):
            with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
                return [_file(path) for path in pool.map(local, matching)]
    except FileNotFoundError as error:
        raise DataError(f"{url}: {error.strerror}") from None
    raise DataError(f"{url}: no file matches")


def _file(path: Path) -> Source:
    if not path.exists():
        raise DataError(f"{path}: no such file{_similar(path)}")
    refuse_special(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: unknown file type; expected one of {', '.join(READERS)}")
    return reader(path)


def _saved(directory: Path, split: str) -> Source:
    if not any((directory / name).exists() for name in SAVED):
        raise DataError(
            f"{directory}: a directory, but not a dataset saved by save_to_disk; "
            f"name the files in it, for example {directory}/*.jsonl"
        )
    return HuggingFace(str(directory), split, None, None)


def _similar(path: Path) -> str:
    """Returns text for an error message: the file with the nearest name in the folder."""
    folder = path.parent
    if not folder.is_dir():
        return f", nor a directory {folder}"
    near = difflib.get_close_matches(path.name, [each.name for each in folder.iterdir()], 1)
    return f"; did you mean {folder / near[0]}?" if near else ""
