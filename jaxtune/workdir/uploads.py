"""Uploads what a run writes into the local directory of a remote workdir, in the background.

The order is such that a run which is killed at any moment goes on from the store: the metrics, the
config and the answers before the checkpoint that they lead up to, and the entry in the list of
checkpoints after the last of its files.
"""

import contextlib
import json
import os
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import jax

from jaxtune.display.errors import UserError
from jaxtune.display.escapes import show
from jaxtune.files.publish import files_below, publish
from jaxtune.files.store import Store, StoreError
from jaxtune.workdir.index import FOLDER, Index, digest_of, hashed
from jaxtune.workdir.lease import Lease, LeaseError
from jaxtune.workdir.mirror import AT_ONCE, EXPORT, Mirror, facts, files_in, mirror_of, mirrors

POLL = 0.5  # seconds between two looks for new checkpoints
SWEEP = 30.0  # seconds between two uploads of metrics and other small files
AGAIN = 30.0  # seconds after which a failed upload is tried again
REPORT = "export.json"
STAGING = ".unverified"  # part of the names of exports that are being written
FIRST, LAST = ("run.json", "config.json"), ("metrics.jsonl", "summary.json")


@contextlib.contextmanager
def in_use(path: Path, what: str) -> Iterator[None]:
    """Takes the lease of a directory in a remote workdir, and uploads what the block writes to it.

    The lease of the workdir itself is that of a run: all that the store has is brought down first,
    and uploads go on during the block. Other directories do nothing here.
    """
    mirror, name = mirror_of(path)
    if mirror is None:
        yield
        return
    lease = mirror.lease(name, what)
    last = lease.take(mirror.take_over)
    done, finish = False, partial(push, mirror)
    try:
        if not name:
            for line in mirror.bring(last=last):
                show(line, sys.stderr)
            mirror.uploads = Uploads(mirror, lease)
            mirror.uploads.begin()
            finish = mirror.uploads.end
        yield
        done = True
    finally:
        try:
            _finish(finish, raises=done)
        finally:
            if not name:
                mirror.uploads, mirror.claimed = None, False
            lease.release()


def _finish(finish: Callable[[], None], raises: bool) -> None:
    """Uploads the rest; an error is raised, or only told if the block itself has failed."""
    try:
        finish()
    except UserError as error:
        if raises:
            raise
        show(f"not all was uploaded: {error}", sys.stderr)


def upload_all(failed: bool) -> None:
    """Uploads what a command has written to the workdirs that it used, in the first process.

    `failed` says that the command has failed, so that an error of the uploads is only told.
    """
    for mirror in mirrors():
        if mirror.claimed and jax.process_index() == 0:
            _finish(partial(push, mirror), raises=not failed)


def push(mirror: Mirror) -> None:
    """Uploads all that has changed in a workdir, without checkpoints."""
    sweep(mirror)
    exports(mirror)


class Uploads:
    """The uploads of one run, which holds the lease of the workdir."""

    def __init__(self, mirror: Mirror, lease: Lease):
        self._mirror, self._lease = mirror, lease
        self._index = Index()
        self._done: dict[str, int] = {}  # inode of each checkpoint that is in the store
        self._changed = threading.Condition()
        self._ending = self._ended = False
        self._told: deque[str] = deque()
        self._problem: Exception | None = None

    def begin(self) -> None:
        """Removes what an upload that was cut off has left, and starts the thread."""
        self._index = Index.of(self._mirror.store)
        self._index.clean(self._mirror.store)
        for step in self._steps():
            held = self._mirror.state.files.get(f"{FOLDER}/{step}", [""])[-1]
            if step in self._index.steps and held == self._index.digest(step):
                self._done[step] = _inode(self._folder(step))
        threading.Thread(target=self._work, name="uploads", daemon=True).start()

    def check(self) -> None:
        """Prints what went wrong; raises LeaseError if another run has taken over."""
        while self._told:
            show(self._told.popleft(), sys.stderr)
        if isinstance(self._problem, LeaseError):
            raise self._problem

    def end(self) -> None:
        """Uploads the rest and waits for it; raises the error if that fails."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
            while not self._ended:  # in short waits, which a signal may interrupt
                self._changed.wait(POLL)
        if self._problem:
            raise self._problem

    def _work(self) -> None:
        swept = time.monotonic()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ending, POLL)
                ending = self._ending
            try:
                if ending or self._new():
                    self._checkpoints()
                if ending or time.monotonic() - swept > SWEEP:
                    sweep(self._mirror)
                    swept = time.monotonic()
                if ending:
                    exports(self._mirror)
                    self._mirror.state.write()
                self._problem = None
            except BaseException as error:  # of the store or the disk; the run goes on
                self._failed(error, ending)
            if ending or isinstance(self._problem, LeaseError):
                break
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _failed(self, error: BaseException, ending: bool) -> None:
        if not isinstance(error, UserError):
            reason = getattr(error, "strerror", None) or repr(error)
            error = StoreError(f"{self._mirror.store} cannot be written: {reason}")
        if self._problem is None and not isinstance(error, LeaseError):
            self._told.append(f"{error} (the run continues, and uploads are tried again)")
        self._problem = error
        if not ending:
            with self._changed:
                self._changed.wait_for(lambda: self._ending, AGAIN)

    # Checkpoints

    def _folder(self, step: str) -> Path:
        return self._mirror.local / FOLDER / step

    def _steps(self) -> list[str]:
        """Returns the complete checkpoints that are here, the newest first."""
        with contextlib.suppress(FileNotFoundError):
            found = [each.name for each in os.scandir(self._mirror.local / FOLDER) if each.is_dir()]
            return sorted(filter(str.isdecimal, found), key=int, reverse=True)
        return []

    def _new(self) -> list[str]:
        return [
            step for step in self._steps() if self._done.get(step) != _inode(self._folder(step))
        ]

    def _checkpoints(self) -> None:
        """Uploads the checkpoints that are not in the store, and removes those no longer here."""
        while new := self._new():
            self._checkpoint(new[0])
        here = self._steps()
        stale = [step for step in self._index.steps if step not in here]
        if stale and here:
            self._forget(stale)

    def _checkpoint(self, step: str) -> None:
        with self._kept(step) as folder:
            if folder is None:
                return
            sweep(self._mirror)  # what led up to this checkpoint
            self._lease.check()
            self._forget([step] if step in self._index.steps else [], begun=step)
            here = files_below(folder)
            with ThreadPoolExecutor(AT_ONCE) as pool:
                abouts = pool.map(lambda name: self._sent(step, name, here[name]), here)
                files = dict(zip(here, abouts, strict=True))
            self._lease.check()
        self._index.steps[step] = files
        self._index.gone.remove(step)
        self._index.write(self._mirror.store)
        self._done[step] = self._uploading
        self._mirror.state.note(f"{FOLDER}/{step}", [0, 0], digest_of(files))
        self._mirror.state.write()

    def _sent(self, step: str, name: str, file: Path) -> list:
        """Uploads a file of a checkpoint, and returns its size and digest."""
        self._mirror.store.upload(f"{FOLDER}/{step}/{name}", file)
        return hashed(file)

    def _forget(self, steps: list[str], begun: str = "") -> None:
        """Takes checkpoints off the list, removes their objects, and notes one that is begun."""
        for step in steps:
            del self._index.steps[step]
            self._done.pop(step, None)
        self._index.gone = [*steps, *([begun] if begun and begun not in steps else [])]
        self._index.write(self._mirror.store)
        for step in steps:
            self._mirror.store.remove(self._mirror.store.entries(f"{FOLDER}/{step}"))
        self._index.gone = [begun] if begun else []

    @contextlib.contextmanager
    def _kept(self, step: str) -> Iterator[Path | None]:
        """Yields links to the files of a checkpoint, which the run may remove meanwhile."""
        made = self._mirror.beside("outgoing") / step
        shutil.rmtree(made, ignore_errors=True)
        self._uploading = _inode(self._folder(step))
        try:
            try:
                shutil.copytree(self._folder(step), made, copy_function=_link)
            except (FileNotFoundError, shutil.Error):
                if self._folder(step).exists():
                    raise
                made = None  # the run has removed it just now
            yield made
        finally:
            shutil.rmtree(self._mirror.beside("outgoing"), ignore_errors=True)


def sweep(mirror: Mirror) -> None:
    """Uploads the files of a workdir that have changed, without exports and checkpoints."""
    _upload(mirror, [name for name in files_in(mirror.local) if not name.startswith(f"{EXPORT}/")])


def exports(mirror: Mirror) -> None:
    """Uploads the exports that have changed, each complete or not at all."""
    folder = mirror.local / EXPORT
    for each in sorted(folder.iterdir()) if folder.is_dir() else ():
        staged = each.name.startswith(".") or STAGING in each.name
        if not staged and each.is_dir() and (each / REPORT).is_file():
            _export(mirror, each)
    files = [name for name in files_in(mirror.local) if name.count("/") == 1]
    alone = [name for name in files if name.startswith(f"{EXPORT}/") and STAGING not in name]
    # The report of an .npz file tells that it is ours, so it goes first.
    _upload(mirror, sorted(alone, key=lambda name: (name.endswith(".npz"), name)), together=False)


def _export(mirror: Mirror, folder: Path) -> None:
    name = f"{EXPORT}/{folder.name}"
    files = files_below(folder)
    state = {each: facts(file) for each, file in files.items()}
    known = [each for each in mirror.state.files if each.startswith(f"{name}/")]
    if {each.removeprefix(f"{name}/") for each in known} == set(state) and all(
        mirror.state.synced(f"{name}/{each}", files[each]) for each in files
    ):
        return
    store = Store(mirror.store.named(name))
    ours = {REPORT, *_reported(store)}
    publish(store, folder, replaced=ours & store.entries().keys())
    for each in known:
        mirror.state.note(each, None)
    _note(mirror, {f"{name}/{each}": state[each] for each in files})


def _reported(store: Store) -> list[str]:
    """Returns the names that the report of an export in the store lists."""
    try:
        content = store.read(REPORT)
    except FileNotFoundError:
        return []
    try:
        return list(json.loads(content)["files"])
    except (ValueError, KeyError, TypeError):
        return []


def _upload(mirror: Mirror, names: list[str], together: bool = True) -> None:
    changed = [name for name in names if not mirror.state.synced(name, mirror.local / name)]
    before = [name for name in FIRST if name in changed]
    after = [name for name in LAST if name in changed]
    between = [name for name in changed if name not in (*before, *after)]
    for group in (before, between, after):
        if together and len(group) > 1:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(lambda name: _sent(mirror, name), group))
        else:
            for name in group:
                _sent(mirror, name)
    if changed:
        mirror.state.write()


def _sent(mirror: Mirror, name: str) -> None:
    file = mirror.local / name
    local = facts(file)
    with contextlib.suppress(FileNotFoundError):  # it was removed meanwhile
        mirror.store.upload(name, file)
        _note(mirror, {name: local})


def _note(mirror: Mirror, files: dict) -> None:
    for name, local in files.items():
        entry = mirror.store.entry(name)
        mirror.state.note(name, local, entry.version if entry else "")


def _inode(path: Path) -> int:
    try:
        found = path.stat()
    except OSError:
        return -1
    return found.st_ino


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # the file system has no hard links
        shutil.copyfile(source, target)
    return target
