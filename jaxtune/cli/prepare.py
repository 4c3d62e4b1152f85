"""Converts a published dataset to the JSON lines that a task reads.

A task's `prepared(record, place)` returns, for a published record, the columns that the task reads
and those that its answers are scored by. Rows are read, checked and written one at a time.
"""

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from jaxtune import tasks
from jaxtune.data.errors import DataError, RowError, Skipped, known
from jaxtune.data.sources import Source, open_source
from jaxtune.display import escapes
from jaxtune.display.errors import UserError
from jaxtune.files import whole_file
from jaxtune.files.store import Store, is_remote
from jaxtune.files.store import split as split_url

SCRIPT = "Dataset scripts are no longer supported"  # the error of the datasets package
CONVERTED = "refs/convert/parquet"  # the revision where the Hub keeps such a dataset as Parquet
SUFFIXES = (".jsonl", ".ndjson", ".json")  # of files that are read as JSON lines
CHUNK = 256  # rows between two reports of progress


@dataclass(frozen=True)
class Prepared:
    """A written file of rows, and the rows that were left out of it."""

    file: Path | str
    rows: int
    left_out: Skipped


def prepare(
    task: str,
    source: str,
    file: Path | str,
    *,
    split: str = "train",
    revision: str | None = None,
    subset: str | None = None,
    rows: int | None = None,
    overwrite: bool = False,
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> Prepared:
    """Writes the rows of a source as JSON lines for a task, whole or not at all.

    Rows that the task cannot write as text are left out and counted.

    Args:
      task: Name of a task that prepares its data.
      source: A file, a glob, a saved dataset, or owner/name on the Hub.
      file: File to write, a path or a URL, with a suffix of `SUFFIXES`.
      split: Split of a dataset.
      revision: Revision of a dataset on the Hub.
      subset: Configuration of a dataset on the Hub.
      rows: Number of rows of the source to read; None reads all.
      overwrite: Replaces an existing file, instead of refusing to.
      tell: Called with the number of rows read so far and their total.

    Returns:
      The file, the number of rows in it, and the rows left out.

    Raises:
      DataError: If no row can be used, or a file cannot be read or written.
    """
    module = _task(task)
    if is_remote(file):
        more = dict(split=split, revision=revision, subset=subset, rows=rows, tell=tell)
        return _prepare_remote(task, source, Store(str(file)), overwrite, more)
    file = Path(file).expanduser()
    _refuse(file, overwrite)
    found = _opened(source, split=split, revision=revision, subset=subset, limit=rows)
    left_out = Skipped("skip")
    with _new_file(file, overwrite) as out:
        count = 0
        for line in _lines(found, module, left_out, tell):
            out.write(line)
            count += 1
        if not count:
            first = left_out.first[0]
            raise DataError(f"none of the {left_out.count:,} rows can be used; the first: {first}")
    return Prepared(file, count, left_out)


def _prepare_remote(
    task: str, source: str, store: Store, overwrite: bool, more: Mapping[str, Any]
) -> Prepared:
    """Writes the rows to a local file, and uploads that; see `prepare`."""
    if store.entry() and not overwrite:
        raise UserError(f"{store}: already exists; --overwrite replaces it")
    folder, name = split_url(store.url)
    with tempfile.TemporaryDirectory() as made:
        escapes.ALIASES[made] = folder
        found = prepare(task, source, Path(made) / name, **more)
        store.upload("", found.file)
    return replace(found, file=store.url)


def _task(name: str) -> ModuleType:
    """Returns a task's module; raises ValueError unless it has `prepared`."""
    ready = [each for each in tasks.names() if hasattr(tasks.find(each), "prepared")]
    if name in tasks.names() and name not in ready:
        raise UserError(
            f"task {name!r} reads published data directly, with nothing to prepare; tasks with data"
            f" to prepare: {', '.join(ready)}"
        )
    return tasks.find(known("task", name, ready))


def _opened(source: str, **options: Any) -> Source:
    try:
        return open_source(source, **options)
    except DataError as error:
        if SCRIPT not in str(error) or options["revision"]:
            raise
        raise DataError(
            f"{source}: this dataset is a script, which the datasets package no longer runs; the"
            f" Hub has it as Parquet under another revision: add --revision {CONVERTED}"
        ) from None


def _lines(
    source: Source, task: ModuleType, left_out: Skipped, tell: Callable[[int, int], None]
) -> Iterator[bytes]:
    """Yields each usable row as a line of JSON; the others are counted in `left_out`."""
    for number in range(len(source)):
        place = source.place(number)
        try:
            yield _line(task, source[number], place)
        except RowError as error:
            left_out.note(error)
        except OSError as error:
            raise DataError(f"{place}: cannot be read: {error.strerror or error}") from None
        if not (number + 1) % CHUNK:
            tell(number + 1, len(source))


def _line(task: ModuleType, record: Mapping[str, Any], place: str) -> bytes:
    """Returns a prepared row as a line of JSON, from which the task can write its texts."""
    row = task.prepared(record, place)
    try:
        line = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise RowError(place, f"cannot be written as JSON: {error}") from None
    read = json.loads(line)
    task.prefix(read, place)
    task.suffix(read, place)
    return line


def _refuse(file: Path, overwrite: bool) -> None:
    """Raises ValueError for a wrong suffix, a directory, or a file that must not be replaced."""
    if file.suffix.lower() not in SUFFIXES:
        raise UserError(f"{file}: expected a name ending in {', '.join(SUFFIXES)}")
    if file.is_dir():
        raise UserError(f"{file}: is a directory; expected the name of a file")
    if file.exists() and not overwrite:
        raise UserError(f"{file}: already exists; --overwrite replaces it")


@contextlib.contextmanager
def _new_file(file: Path, overwrite: bool) -> Iterator[IO[bytes]]:
    """Opens a file that gets its name once it is whole on disk, and else leaves nothing behind."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as out:
            yield out
            _refuse(file, overwrite)  # the file may have been created meanwhile
    except OSError as error:
        raise DataError(f"{file}: cannot be written: {error.strerror or error}") from None
