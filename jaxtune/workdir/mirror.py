"""Workdirs in object stores: a local directory that is kept equal to a folder there.

All other code works on the local directory. What another machine wrote is brought down before it is
used, and `uploads` takes up what is written here. The local directory counts for as long as the
last run used it; once another machine has gone on with the run, it is brought up to date, and files
that were never uploaded are kept beside it.
"""

import os
import secrets
import shutil
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock

from jaxtune.display import escapes
from jaxtune.files import UnreadableError, read_json, write_json
from jaxtune.files.fetched import UPLOADING, cache, disk_explained, download
from jaxtune.files.store import Entry, Store, digest, is_inside, is_remote
from jaxtune.workdir import index
from jaxtune.workdir.lease import FOLDER as LEASES
from jaxtune.workdir.lease import Lease

CHECKPOINTS, EXPORT, EVAL = "checkpoints", "export", "eval"
EVERYTHING = (CHECKPOINTS, EXPORT, EVAL)
RUN = "run.json"
# Files that decide how a run goes on: they are read by name, as a list of the store may lag behind.
ESSENTIAL = (RUN, "config.json", "metrics.jsonl", "summary.json")
LOCAL = ("damaged", "wandb")  # folders of a workdir that stay on the machine
UNREAD = ("tensorboard", LEASES)  # folders in the store that are not brought down
AT_ONCE = 8  # files that are brought down at a time
STATE = {"place": str, "whole": [str], "files": {...: [object]}}


@dataclass
class State:
    """What is known of the local directory, in a file beside it."""

    file: Path
    place: str  # random name of the directory
    whole: list[str]  # parts that were brought down to the end
    # Local size and time, and the store's version, of each file when it equalled the store's.
    files: dict[str, list]
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def read(cls, file: Path) -> "State":
        """Reads the file; a missing or damaged one means that nothing is known."""
        try:
            found = read_json(file, STATE)
        except (FileNotFoundError, UnreadableError):
            found = {"place": secrets.token_hex(8), "whole": [], "files": {}}
        return cls(file, found["place"], found["whole"], found["files"])

    def write(self) -> None:
        """Writes the state to its file, which the next start reads."""
        with self.lock:
            about = {"place": self.place, "whole": self.whole, "files": dict(self.files)}
            write_json(self.file, about)

    def synced(self, name: str, path: Path) -> bool:
        """Returns whether a local file is as it was when it equalled the store's."""
        known = self.files.get(name)
        return known is not None and known[:2] == facts(path)

    def note(self, name: str, local: list | None, remote: str = "") -> None:
        """Records that a file now equals the store's, as it was locally just before."""
        with self.lock:
            if local is None:
                self.files.pop(name, None)
            else:
                self.files[name] = [*local, remote]


class Mirror:
    """A workdir in a store, and its local directory."""

    def __init__(self, url: str, take_over: bool = False):
        self.store, self.take_over = Store(url), take_over
        self.url = self.store.url
        name = self.url.rpartition("/")[2]
        self.local = cache() / "workdirs" / f"{name}-{digest(self.url)[:12]}"
        escapes.ALIASES[os.fspath(self.local)] = self.url
        self.local.parent.mkdir(parents=True, exist_ok=True)
        self.state = State.read(self.beside("state.json"))
        self.uploads: Any = None  # those of a run that this process does
        self.claimed = False  # whether this process has something to upload

    def beside(self, name: str) -> Path:
        """Returns the path of a file or folder of ours beside the local directory."""
        return self.local.with_name(f".{self.local.name}.{name}")

    def lease(self, folder: str, what: str) -> Lease:
        """Returns the lease of the workdir, or of a folder in it."""
        return Lease(self.store, folder, what, self.place)

    @property
    def place(self) -> str:
        """What identifies the local directory, also if the disk is a copy of another's."""
        return f"{socket.gethostname()} {self.state.place}"

    def foreign(self) -> list[str]:
        """Returns names of objects that are in the way, as no workdir is there."""
        if self.store.entry(RUN) is not None:
            return []
        names = [name for name in self.store.entries() if not name.startswith(f"{LEASES}/")]
        return [] if RUN in names else names

    def claim(self) -> None:
        """Marks the folder in the store as a workdir, with the run.json that is here."""
        file, self.claimed = self.local / RUN, True
        if not self.state.synced(RUN, file):
            local = facts(file)
            if not self.store.create(RUN, file.read_bytes()):
                self.store.upload(RUN, file)
            self.state.note(RUN, local)
            self.state.write()

    def bring(self, parts: Iterable[str] = EVERYTHING, last: str | None = None) -> list[str]:
        """Brings the local directory up to the state of the store.

        Args:
          parts: Folders that are needed besides the small files at the top.
          last: Place that used the workdir last, if the caller has taken its lease; None looks.

        Returns:
          Lines on what was found damaged or had to be kept aside.
        """
        with filelock.FileLock(self.beside("lock")):
            if self.state.file.exists():  # another process may have brought it meanwhile
                self.state = State.read(self.state.file)
            place = self.lease("", "run").last_place() if last is None else last
            ours = place == self.place and "" in self.state.whole
            kept = set(self.state.whole) if ours else set()
            missing = {"", *parts} - kept
            if not missing:
                return []
            self.state.whole = sorted(kept)
            self.state.write()
            notes = _Bringing(self, missing).all()
            self.state.whole = sorted(kept | missing)
            self.state.write()
            return notes


class _Bringing:
    """One time that a local directory is brought up to the state of the store."""

    def __init__(self, mirror: Mirror, parts: set[str]):
        self._mirror, self._parts = mirror, parts
        self._store, self._local, self._state = mirror.store, mirror.local, mirror.state
        self._aside: Path | None = None

    def all(self) -> list[str]:
        """Brings everything, and returns lines on what was notable."""
        self._local.mkdir(parents=True, exist_ok=True)
        found = self._store.current(filter(self._concerns, self._listed()))
        for name in list(self._superseded(found)):
            self._put_aside(name)
        names = [name for name, entry in found.items() if self._differs(name, entry)]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda name: self._fetch(name, found[name]), names))
        notes = list(self._checkpoints()) if CHECKPOINTS in self._parts else []
        if self._aside:
            notes.append(
                "another machine went on with this run; files of this one that were never uploaded "
                f"are kept in {self._aside}"
            )
        return notes

    def _listed(self) -> list[str]:
        found = {*self._store.entries(), *ESSENTIAL}
        # Exports whose upload was cut off do not count.
        cut = {name.rpartition("/")[0] for name in found if name.endswith(f"/{UPLOADING}")}
        return sorted(name for name in found if name.rpartition("/")[0] not in cut)

    def _concerns(self, name: str) -> bool:
        first = name.partition("/")[0]
        part = first if first in EVERYTHING and first != name else ""
        ours = is_inside(name) and name != index.NAME and not is_hidden(name)
        return ours and part in self._parts - {CHECKPOINTS} and first not in UNREAD

    def _differs(self, name: str, entry: Entry) -> bool:
        path = self._local / name
        known = self._state.files.get(name)
        return known is None or not self._state.synced(name, path) or known[2] != entry.version

    def _superseded(self, found: Mapping[str, Entry]) -> Iterator[str]:
        """Yields the local files that another machine has replaced or removed."""
        for name in filter(self._concerns, files_in(self._local)):
            gone = self._state.synced(name, self._local / name) or name in ESSENTIAL
            if self._differs(name, found[name]) if name in found else gone:
                yield name

    def _put_aside(self, name: str) -> None:
        """Removes a local file or folder, or keeps it aside if it was never uploaded."""
        path = self._local / name
        if self._state.synced(name, path):
            path.unlink()
        else:
            if self._aside is None:
                self._aside = free(self._local.with_name(f"{self._local.name}.kept"))
            target = self._aside / name
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
        self._state.note(name, None)

    def _fetch(self, name: str, entry: Entry) -> None:
        path = self._local / name
        partial = path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
        with disk_explained(self._local, entry.size):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                download(self._store, name, partial, entry)
                partial.replace(path)
            except FileNotFoundError:  # it was removed meanwhile
                return
            finally:
                partial.unlink(missing_ok=True)
        self._state.note(name, facts(path), entry.version)

    def _checkpoints(self) -> Iterator[str]:
        """Brings the complete checkpoints, and yields lines on those that are damaged."""
        known = index.Index.of(self._store)
        folder = self._local / CHECKPOINTS
        here = {each.name for each in folder.glob("[0-9]*")} if folder.is_dir() else set()
        for step in here:
            if step not in known.steps or not self._holds(step, known):
                self._put_aside_step(step)
        for step in sorted(known.steps, key=int):
            if not (folder / step).is_dir():
                yield from self._bring_step(step, known.steps[step])

    def _holds(self, step: str, known: index.Index) -> bool:
        """Returns whether a local checkpoint is the one in the store."""
        return self._state.files.get(f"{CHECKPOINTS}/{step}", [""])[-1] == known.digest(step)

    def _put_aside_step(self, step: str) -> None:
        path = self._local / CHECKPOINTS / step
        if f"{CHECKPOINTS}/{step}" in self._state.files:  # it was in the store once
            shutil.rmtree(path)
            self._state.note(f"{CHECKPOINTS}/{step}", None)
        else:
            self._put_aside(f"{CHECKPOINTS}/{step}")

    def _fetched(self, step: str, name: str, about: list, made: Path) -> str:
        return index.fetch(self._store, step, name, about, made / name)

    def _bring_step(self, step: str, files: index.Files) -> Iterator[str]:
        made = self._mirror.beside("incoming") / step
        shutil.rmtree(made, ignore_errors=True)
        with disk_explained(self._local, sum(size for size, _ in files.values())):
            made.mkdir(parents=True)
            with ThreadPoolExecutor(AT_ONCE) as pool:
                found = pool.map(lambda name: self._fetched(step, name, files[name], made), files)
                problems = list(filter(None, found))
            if problems:
                shutil.rmtree(made)
                yield f"checkpoint {step} in {self._store} is damaged: {problems[0]}"
                return
            final = self._local / CHECKPOINTS / step
            final.parent.mkdir(exist_ok=True)
            made.rename(final)
        self._state.note(f"{CHECKPOINTS}/{step}", [0, 0], index.digest_of(files))


_mirrors: dict[Path, Mirror] = {}  # by local directory, for the life of the process


def local_workdir(place: str | Path, take_over: bool = False) -> Path:
    """Returns the local directory of a workdir: a path as it is, or the mirror of a URL."""
    if not is_remote(place):
        return Path(place).expanduser()
    made = Mirror(str(place), take_over)
    return _mirrors.setdefault(made.local, made).local


def mirror_of(path: Path) -> tuple[Mirror | None, str]:
    """Returns the mirror that a path is in, and its name there; None for other paths."""
    for local, mirror in _mirrors.items():
        if path == local:
            return mirror, ""
        if local in path.parents:
            return mirror, path.relative_to(local).as_posix()
    return None, ""


def mirrors() -> list[Mirror]:
    """Returns the mirrors that this process uses."""
    return list(_mirrors.values())


def forget() -> None:
    """Forgets all mirrors, as a new process would."""
    _mirrors.clear()


def bring(path: Path, parts: Iterable[str]) -> list[str]:
    """Brings the parts of a workdir up to date if it is in a store; see `Mirror.bring`."""
    mirror, _ = mirror_of(path)
    return mirror.bring(parts) if mirror else []


def files_in(folder: Path) -> Iterator[str]:
    """Yields the names of the files in a workdir that belong in the store, without checkpoints."""
    for place, folders, files in os.walk(folder):
        here = Path(place).relative_to(folder)
        top = here == Path(".")
        folders[:] = sorted(
            each
            for each in folders
            if not each.startswith(".") and not (top and each in (*LOCAL, CHECKPOINTS))
        )
        for name in sorted(files):
            if not is_hidden(name) and not (Path(place) / name).is_symlink():
                yield (here / name).as_posix()


def is_hidden(name: str) -> bool:
    """Returns whether a file stays on the machine, as our temporary and lock files do."""
    return name.rpartition("/")[2].startswith(".")


def facts(path: Path) -> list | None:
    """Returns size and time of a file, or None if it is gone."""
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


def free(path: Path) -> Path:
    """Returns a path that does not exist: this one, or one with a number."""
    number, found = 1, path
    while found.exists():
        number += 1
        found = path.with_name(f"{path.name}-{number}")
    return found
