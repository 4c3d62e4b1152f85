"""The workdir: holds one run of one config, locked by one process group at a time.

Its files are written whole or not at all. A directory that is not empty and not marked by a
run.json is not ours: nothing is written to it.
"""

import contextlib
import datetime
import itertools
import json
import os
import secrets
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import filelock
import jax

from jaxtune.config.load import difference
from jaxtune.files import UnwritableError, special_kind, write_json
from jaxtune.files.fetched import CACHE, known_as
from jaxtune.workdir import agreement
from jaxtune.workdir.errors import WorkdirError
from jaxtune.workdir.mirror import mirror_of
from jaxtune.workdir.uploads import in_use

CONFIG, RUN, METRICS, LOCK = "config.json", "run.json", "metrics.jsonl", ".lock"
CHECKPOINTS, SUMMARY = "checkpoints", "summary.json"
SAVED = "saved"  # entry of run.json: whether a checkpoint has been written
# Fields that may differ when a run is resumed: they decide how it is computed, not the result.
FREE = ("mesh.", "log.", "hub.", "data.workers")
SLOW = 60.0  # most seconds until a shared file system shows a new file to all hosts
NAMED = 5  # files that an error message lists


@dataclass(frozen=True)
class Workdir:
    """The directory of a run, locked for as long as the run uses it."""

    path: Path
    started: str  # ISO date on which the run began, passed to chat templates
    name: str  # unique name of the run
    changes: tuple[str, ...]  # config fields that differ from when the run began, one line each
    settings: Mapping[str, Any] = field(default_factory=dict)  # the resolved config
    accepts_changes: bool = False  # whether the user accepts such differences
    stepped: bool = False  # whether the run has done a step
    lock: tuple[int, int] | None = None  # device and inode of the lock, in the first process

    def write(self, name: str, content: Any) -> Path:
        """Writes a JSON file in the first process, and returns its path in every process."""
        if jax.process_index() == 0:
            write_json(self.path / name, content)
        return self.path / name

    def adopt(self, **about: Any) -> None:
        """Writes config.json, once the run is known to be able to start with this config.

        A former config that gave another result is kept as config.1.json, config.2.json and so on.
        `about` is added to run.json.
        """
        if decisive(self.changes):
            names = (f"config.{number}.json" for number in itertools.count(1))
            free = next(name for name in names if not (self.path / name).exists())
            self.write(free, read_json(self.path / CONFIG))
        self.note(**about)
        self.write(CONFIG, self.settings)

    def note(self, **about: Any) -> None:
        """Adds entries to run.json, which is written only if that changes it."""
        known = read_json(self.path / RUN) or {}
        content = {"started": self.started, "name": self.name} | known | about
        if content != known:
            self.write(RUN, content)

    def check(self) -> None:
        """Raises WorkdirError if the directory was removed or replaced since it was locked.

        Of a remote one, also if another run has taken it over.
        """
        mirror, _ = mirror_of(self.path)
        if mirror and mirror.uploads:
            mirror.uploads.check()
        if self.lock is not None and self.lock != _inode(self.path / LOCK):
            raise WorkdirError(
                f"{self.path} was removed or replaced while the run was using it; what the run did "
                "since its last checkpoint is lost"
            )


@contextlib.contextmanager
def locked_directory(path: Path, what: str) -> Iterator[None]:
    """Creates a directory and locks it exclusively for the duration of the block.

    Raises WorkdirError if the lock is held elsewhere; its message names the holder by `what`, such
    as "run". Of several processes that share a run, only the first one calls this.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / LOCK).touch()  # filelock would report a directory that is read-only as locked
    except OSError as error:
        raise UnwritableError(path, error) from None
    lock = filelock.FileLock(path / LOCK, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise WorkdirError(
            f"another {what} is using {path}; wait for it to end, or name another --workdir"
        ) from None
    try:
        with in_use(path, what):
            yield
    finally:
        lock.release()


@contextlib.contextmanager
def run_directory(
    path: Path, settings: Mapping[str, Any], *, accept_changes: bool = False
) -> Iterator[Workdir]:
    """Creates the directory of a new run, or opens that of a run to resume, and locks it.

    `settings` is the resolved config. If the directory holds a run of another config that has done
    a step, this raises WorkdirError, unless `accept_changes` is set or only fields in `FREE`
    differ; likewise if the directory is not ours, or misses what a run needs to be resumed. The
    caller writes the config by `Workdir.adopt`; a new run that ends before that leaves nothing that
    is seen. Of several processes, the first one reads and locks the directory for all.
    """
    path = path.expanduser()
    with contextlib.ExitStack() as stack:

        def opened() -> dict[str, Any]:
            refuse_foreign(path)
            stack.enter_context(locked_directory(path, "run"))
            _remove_leftovers(path)
            return _opened(path, settings, accept_changes)

        known = agreement.of_first(opened)
        if known["new"] and agreement.first() and not mirror_of(path)[0]:
            stack.callback(_forget_unadopted, path)
        advice = "name another --workdir"
        if mirror_of(path)[0]:  # checkpoints are written to its local copy
            advice = f"set {CACHE} to a directory there"
        agreement.unless_all(
            partial(_shared, path, known["name"]),
            f"{path} must be on a file system that all "
            f"hosts share, as the checkpoints of several processes are: {advice}",
        )
        yield Workdir(
            path,
            known["started"],
            known["name"],
            tuple(known["changes"]),
            settings,
            accepts_changes=accept_changes,
            stepped=known["stepped"],
            lock=_inode(path / LOCK) if agreement.first() else None,
        )


def _forget_unadopted(path: Path) -> None:
    """Removes run.json if it is all that is seen: what else is there is ours only with it."""
    with contextlib.suppress(OSError):  # such as a directory that was removed
        if all(each == RUN or _is_ours(each) for each in os.listdir(path)):
            (path / RUN).unlink()


def _shared(path: Path, name: str) -> bool:
    """Whether this process finds the run that the first one opened; file systems may be slow."""
    end = time.monotonic() + SLOW
    while (_about(path) or {}).get("name") != name:
        if time.monotonic() > end:
            return False
        time.sleep(SLOW / 100)
    return True


def _opened(path: Path, settings: Mapping[str, Any], accept_changes: bool) -> dict[str, Any]:
    """Returns what a locked directory says about its run, and writes run.json; see `Workdir`."""
    about = _about(path)
    stepped = _stepped(path)
    _refuse_incomplete(path, about, stepped, accept_changes)
    changes = _changes(path, settings) if stepped else []
    differing = decisive(changes)
    if differing and not accept_changes:
        raise WorkdirError(
            "\n  ".join([f"{path} holds a run of another config; differences:", *differing])
            + "\nPass --accept-changes to continue with the new one, or name another --workdir"
        )
    new = about is None
    about = (about or _new(path)) | ({} if stepped else {"started": _today()})
    write_json(path / RUN, about)
    _announce(path)
    named = {name: about[name] for name in ("started", "name")}
    return named | {"stepped": stepped, "changes": changes, "new": new}


def claim(path: Path) -> None:
    """Creates a directory for our files and marks it as ours; raises if it is another's."""
    refuse_foreign(path)
    if not (path / RUN).exists():
        write_json(path / RUN, _new(path))
    _announce(path)


def refuse_foreign(path: Path) -> None:
    """Raises WorkdirError if a directory holds files, but none of ours.

    Empty files are in nobody's way, and neither is the file that this program's output goes to.
    """
    mirror, _ = mirror_of(path)
    if mirror and (names := mirror.foreign()):
        raise _foreign(mirror.url, names)
    try:
        found = sorted(os.scandir(path), key=lambda each: each.name)
    except (FileNotFoundError, NotADirectoryError):
        return  # the directory will be made, or the error of making it says what is in the way
    except OSError as error:
        raise WorkdirError(f"{path} cannot be read: {error.strerror}") from None
    if any(each.name == RUN for each in found):
        return
    outputs = {_inode(stream.fileno()) for stream in _streams()}
    foreign = [
        each.name for each in found if not (_is_ours(each.name) or _is_harmless(each, outputs))
    ]
    if foreign:
        raise _foreign(path, foreign)


def _foreign(place: Path | str, names: list[str]) -> WorkdirError:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return WorkdirError(
        f"{place} is not empty and has no {RUN}, which marks the directory of a run: it contains "
        f"{', '.join(names[:NAMED])}{more}; name another --workdir, or move these files away"
    )


def begun(path: Path) -> str:
    """Returns the ISO date on which the run in a directory began, or today's if there is none.

    Chat templates are rendered with this date.
    """
    about = _about(path)
    return about["started"] if about else _today()


def decisive(changes: Iterable[str]) -> list[str]:
    """Returns the changes of fields that decide the result of a run."""
    return [line for line in changes if not line.startswith(FREE)]


def read_json(file: Path) -> dict[str, Any] | None:
    """Reads a JSON object that jaxtune wrote; returns None if the file does not exist."""
    content = read_bytes(file)
    if content is None:
        return None
    try:
        found = json.loads(content)
        json.dumps(found, allow_nan=False)  # NaN and infinity are no JSON, though Python reads them
    except (ValueError, RecursionError) as error:
        raise WorkdirError(
            f"{file} is not valid JSON ({error}), so its run cannot be identified; name another "
            "--workdir, or move this one away"
        ) from None
    if not isinstance(found, dict):
        raise WorkdirError(
            f"{file} is not valid: expected a JSON object; name another --workdir, or move it away"
        )
    return found


def read_bytes(file: Path) -> bytes | None:
    """Reads a file of a run; returns None if it does not exist.

    Raises WorkdirError for what cannot be read, such as a directory, and for what might be read
    without an end, such as a named pipe.
    """
    try:
        if kind := special_kind(file):
            raise WorkdirError(f"{file} is {kind}, expected a regular file; move it away")
        return file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise WorkdirError(f"{file} cannot be read: {error.strerror}") from None


def _about(path: Path) -> dict[str, Any] | None:
    """Returns the content of run.json; raises WorkdirError if jaxtune did not write it."""
    about = read_json(path / RUN)
    if about is None:
        return None
    try:
        datetime.date.fromisoformat(about["started"])
        if not isinstance(about["name"], str):
            raise TypeError
    except (KeyError, TypeError, ValueError):
        raise WorkdirError(
            f"{path / RUN}: expected the date `started` and the text `name` of a run, found "
            f"{', '.join(about) or 'nothing'}; name another --workdir, or move this file away"
        ) from None
    return about


def _refuse_incomplete(
    path: Path, about: Mapping[str, Any] | None, stepped: bool, accept_changes: bool
) -> None:
    """Raises WorkdirError if a run's checkpoints or config were removed."""
    saved = (about or {}).get(SAVED) or (path / SUMMARY).exists()
    if saved and not _has_checkpoints(path):
        raise WorkdirError(
            f"{path / CHECKPOINTS} holds no checkpoint, though the run saved some. Starting over "
            "would replace its metrics and export: restore the checkpoints, name another "
            "--workdir, or move this one away"
        )
    if stepped and _has_checkpoints(path) and not (path / CONFIG).exists() and not accept_changes:
        raise WorkdirError(
            f"{path / CONFIG} is missing, so the config of the run's checkpoints is not known. "
            "Restore it, pass --accept-changes to go on with the given config, or name another "
            "--workdir"
        )


def _changes(path: Path, settings: Mapping[str, Any]) -> list[str]:
    before = read_json(path / CONFIG)
    return [] if before is None else difference(before, settings)


def _stepped(path: Path) -> bool:
    """Whether the run in a directory has done a step that its checkpoints or its journal know."""
    if _has_checkpoints(path):
        return True
    return b'"kind": "train"' in (read_bytes(path / METRICS) or b"")


def _has_checkpoints(path: Path) -> bool:
    return any((path / CHECKPOINTS).glob("[0-9]*"))


def _is_ours(name: str) -> bool:
    """Whether a name is one that only jaxtune gives, to a file that run.json need not announce."""
    return name == LOCK or (name.startswith(".") and (".partial-" in name or name.endswith(".npz")))


def _is_harmless(entry: os.DirEntry, outputs: set) -> bool:
    """Whether an entry is an empty file, or one of those that this program's output goes to."""
    try:
        found = entry.stat()
        return entry.is_file() and (not found.st_size or (found.st_dev, found.st_ino) in outputs)
    except OSError:  # such as a link to nothing
        return False


def _inode(file: Path | int) -> tuple[int, int] | None:
    """Returns what identifies an existing file, or None if it cannot be found."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _streams() -> Iterator[Any]:
    """Yields the standard output and error if they have a file descriptor."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.fileno()
            yield stream


def _remove_leftovers(path: Path) -> None:
    """Removes files that a process of the same run was writing when it was killed."""
    for each in path.glob(".*.partial-*"):
        if each.is_file():
            with contextlib.suppress(OSError):
                each.unlink()


def _announce(path: Path) -> None:
    """Marks a remote workdir as ours in the store, once its run.json is here."""
    mirror, _ = mirror_of(path)
    if mirror and jax.process_index() == 0:
        mirror.claim()


def _today() -> str:
    return datetime.date.today().isoformat()


def _new(path: Path) -> dict[str, str]:
    now, name = datetime.datetime.now(), Path(known_as(path)).resolve().name
    return {
        "started": now.date().isoformat(),
        "name": f"{name}-{now:%Y-%m-%d_%H.%M.%S}-{secrets.token_hex(2)}",
    }
