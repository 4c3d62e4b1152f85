"""The workdir: holds one run of one config, locked by one process group at a time.

Its files are written whole or not at all.
"""

import contextlib
import datetime
import itertools
import json
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock
import jax

from jaxtune.config.load import difference
from jaxtune.files import UnwritableError, write_json

CONFIG, RUN, METRICS, LOCK = "config.json", "run.json", "metrics.jsonl", ".lock"
# Fields that may differ when a run is resumed: they decide how it is computed, not the result.
FREE = ("mesh.", "log.", "hub.", "data.workers")


class WorkdirError(ValueError):
    """A directory that cannot be used for the requested run."""


@dataclass(frozen=True)
class Workdir:
    """The directory of a run, locked for as long as the run uses it."""

    path: Path
    started: str  # ISO date on which the run began, passed to chat templates
    name: str  # unique name of the run
    changes: tuple[str, ...]  # config fields that differ from when the run began, one line each
    settings: Mapping[str, Any] = field(default_factory=dict)  # the resolved config

    def write(self, name: str, content: Any) -> Path:
        """Writes a JSON file in the first process, and returns its path in every process."""
        if jax.process_index() == 0:
            write_json(self.path / name, content)
        return self.path / name

    def adopt(self) -> None:
        """Writes config.json, once the run is known to be able to start with this config.

        A former config that gave another result is kept as config.1.json, config.2.json and so on.
        """
        if _decisive(self.changes):
            names = (f"config.{number}.json" for number in itertools.count(1))
            free = next(name for name in names if not (self.path / name).exists())
            self.write(free, _read(self.path / CONFIG))
        self.write(CONFIG, self.settings)


@contextlib.contextmanager
def locked_directory(path: Path, what: str, *, take: bool = True) -> Iterator[None]:
    """Creates a directory and locks it exclusively for the duration of the block.

    Raises WorkdirError if the lock is held elsewhere; its message names the holder by `what`, such
    as "run". In a process group only the first process takes the lock: the others set `take=False`.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if take:
            (path / LOCK).touch()  # filelock would report a directory that is read-only as locked
    except OSError as error:
        raise UnwritableError(path, error) from None
    lock = filelock.FileLock(path / LOCK, timeout=0)
    try:
        if take:
            lock.acquire()
    except filelock.Timeout:
        raise WorkdirError(
            f"another {what} is using {path}; wait for it to end, or name another --workdir"
        ) from None
    try:
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
    differ. The caller writes the config by `Workdir.adopt`.
    """
    path = path.expanduser()
    with locked_directory(path, "run", take=jax.process_index() == 0):
        changes = _changes(path, settings)
        differing = _decisive(changes)
        if differing and not accept_changes:
            raise WorkdirError(
                "\n  ".join([f"{path} holds a run of another config; differences:", *differing])
                + "\nPass --accept-changes to continue with the new one, or name another --workdir"
            )
        about = _read(path / RUN) or _new(path)
        found = Workdir(path, about["started"], about["name"], tuple(changes), settings)
        found.write(RUN, about)
        yield found


def begun(path: Path) -> str:
    """Returns the ISO date on which the run in a directory began, or today's if there is none.

    Chat templates are rendered with this date.
    """
    about = _read(path / RUN)
    return about["started"] if about else datetime.date.today().isoformat()


def _changes(path: Path, settings: Mapping[str, Any]) -> list[str]:
    before: Mapping | None = _read(path / CONFIG)
    return [] if before is None or not _stepped(path) else difference(before, settings)


def _decisive(changes: Iterable[str]) -> list[str]:
    """Returns the changes of fields that decide the result of a run."""
    return [line for line in changes if not line.startswith(FREE)]


def _stepped(path: Path) -> bool:
    """Whether the run in a directory has done a step that its checkpoints or its journal know."""
    if any((path / "checkpoints").glob("[0-9]*")):
        return True
    try:
        return b'"kind": "train"' in (path / METRICS).read_bytes()
    except FileNotFoundError:
        return False


def _read(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise WorkdirError(f"{file} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise WorkdirError(
            f"{file} is not valid JSON ({error}), so its run cannot be identified; name another "
            "--workdir, or move this one away"
        ) from None
    if not isinstance(found, dict):
        raise WorkdirError(f"{file} is not a JSON object; name another --workdir, or move it away")
    return found


def _new(path: Path) -> dict[str, str]:
    now = datetime.datetime.now()
    return {
        "started": now.date().isoformat(),
        "name": f"{path.resolve().name}-{now:%Y-%m-%d_%H.%M.%S}-{secrets.token_hex(2)}",
    }
