"""Copies of remote files in a local cache, for code that reads local paths.

Each version of an object is kept once, under a digest of its URL and version, so that a changed
object is fetched anew and a run that reads the former one is not disturbed. Files of one folder
are linked side by side under their own names. A download that was cut off goes on where it
stopped.
"""

import contextlib
import errno
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

from jaxtune.display import escapes
from jaxtune.files.store import Entry, Store, StoreError, digest, is_inside, is_remote, split

CACHE = "JAXTUNE_CACHE"  # variable of the environment that names the directory of the cache
PIECE = 16 * 2**20  # bytes of one request
AT_ONCE = 8  # requests for pieces of one object at a time
FILES_AT_ONCE = 16  # small objects that are fetched at a time
UPLOADING = ".uploading.json"  # in a folder whose upload has not ended: see `publish`
FULL = (errno.ENOSPC, errno.EDQUOT)


def cache() -> Path:
    """Returns the directory of the local copies of remote files."""
    if place := os.environ.get(CACHE):
        return Path(place).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "jaxtune"


def local(
    place: str | os.PathLike[str],
    wanted: Sequence[str] = ("*",),
    unwanted: Sequence[str] = (),
    beside: Sequence[str] = (),
) -> Path:
    """Returns a local path as it is, and that of the copy of a remote file or folder.

    Args:
      place: A local path, or the URL of an object or of a folder.
      wanted: Patterns of the names below a folder; a star matches slashes, too.
      unwanted: Patterns of names that are left out.
      beside: Patterns of files that are fetched along with a single object, into its folder.

    Returns:
      The path, with `~` expanded. A copy has the time of writing of its object.

    Raises:
      FileNotFoundError: If there is no object and no folder of that name.
      StoreError: If the store cannot be read, or the folder holds an upload that has not ended.
    """
    if not is_remote(place):
        return Path(place).expanduser()
    given = (str(place).rstrip("/"), tuple(wanted), tuple(unwanted), tuple(beside))
    with _once(given) as asked:
        if asked not in _fetched:
            _fetched[asked] = _fetch(*asked)
        return _fetched[asked]


def known_as(path: str | os.PathLike[str]) -> str:
    """Returns the URL of a local copy, and any other path as text."""
    path = Path(path)
    for each in (path, *path.parents):
        if url := escapes.ALIASES.get(os.fspath(each)):
            return "/".join((url, *path.relative_to(each).parts))
    return os.fspath(path)


def content(url: str, count: int = -1) -> bytes:
    """Returns the bytes of an object, or the first `count` of them, from its local copy."""
    with _once((url,)) as asked:
        if asked not in _fetched:
            store = Store(url)
            if (entry := store.entry()) is None:
                raise FileNotFoundError(errno.ENOENT, "no such object", url)
            _fetched[asked] = _object(store, "", split(url)[1], entry)
    with _fetched[asked].open("rb") as file:
        return file.read(count)


def matches(pattern: str) -> list[str]:
    """Returns the URLs of the objects that match a glob pattern."""
    start = re.split(r"[*?[]", pattern, maxsplit=1)[0]
    folder = start.rpartition("/")[0]
    if not is_remote(folder):
        raise StoreError(f"{pattern}: expected the name of a bucket before the first star")
    store = Store(folder)
    return [store.named(name) for name in store.matching(pattern[len(folder) + 1 :])]


def forget() -> None:
    """Makes the next `local` of every URL ask the store again whether it has changed."""
    with _locks_lock:
        _fetched.clear()
        _locks.clear()


_fetched: dict[tuple, Path] = {}  # by the arguments of `local`, for the life of the process
_locks: dict[tuple, threading.Lock] = {}
_locks_lock = threading.Lock()


@contextlib.contextmanager
def _once(asked: tuple) -> Iterator[tuple]:
    """Lets one thread at a time fetch what is asked for."""
    with _locks_lock:
        lock = _locks.setdefault(asked, threading.Lock())
    with lock:
        yield asked


def _fetch(url: str, wanted: Sequence, unwanted: Sequence, beside: Sequence) -> Path:
    store = Store(url)
    if (entry := store.entry()) is not None:
        if not beside:
            file = _object(store, "", split(url)[1], entry)
            escapes.ALIASES[os.fspath(file)] = url
            return file
        folder, name = split(url)
        return _tree(Store(folder), (name, *beside), ("*/*", *unwanted)) / name
    return _tree(store, wanted, unwanted)


def _tree(store: Store, wanted: Sequence[str], unwanted: Sequence[str]) -> Path:
    """Returns a directory with links to the copies of a folder's objects."""
    every = store.entries()
    _refuse_unfinished(store, every)
    found = store.current(name for name in every if _is_wanted(name, wanted, unwanted))
    if not found:
        seen = f"; it holds {', '.join(list(every)[:3])}" if every else ""
        raise FileNotFoundError(errno.ENOENT, f"no such object or folder{seen}", store.url)
    for name in found:
        _refuse_outside(store, name)
    place = cache() / "trees" / digest(store.url, sorted(found.items(), key=repr))
    escapes.ALIASES[os.fspath(place)] = store.url
    if not place.is_dir():
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            made = pool.map(
                lambda name: _object(store, name, name.split("/")[-1], found[name]), found
            )
            _linked(place, dict(zip(found, made, strict=True)))
    return place


def _is_wanted(name: str, wanted: Sequence[str], unwanted: Sequence[str]) -> bool:
    return any(fnmatch(name, each) for each in wanted) and not any(
        fnmatch(name, each) for each in unwanted
    )


def _refuse_unfinished(store: Store, entries: Mapping[str, Entry]) -> None:
    if UPLOADING in entries:
        raise StoreError(
            f"{store.url} is not complete: an upload to it is under way or was cut off. Wait for "
            "it to end, or write it again"
        )


def _refuse_outside(store: Store, name: str) -> None:
    """Raises if an object's name would be a path outside the copy of its folder."""
    if not is_inside(name):
        raise StoreError(f"{store.url} holds an object named {name!r}, which is no relative path")


def _object(store: Store, name: str, file_name: str, entry: Entry) -> Path:
    """Returns the local copy of one version of an object, downloading what of it is missing."""
    import filelock

    number = digest(store.named(name), entry.version, entry.size)
    file = cache() / "objects" / number[:2] / number[2:] / file_name
    if file.is_file():
        return file
    with disk_explained(file.parent, entry.size):
        file.parent.mkdir(parents=True, exist_ok=True)
        # Processes of one machine share the cache.
        with filelock.FileLock(file.parent / ".lock"):
            if not file.is_file():
                partial = file.parent / ".partial"
                download(store, name, partial, entry)
                os.utime(partial, ns=(entry.modified, entry.modified))
                partial.replace(file)
    return file


def download(store: Store, name: str, file: Path, entry: Entry) -> None:
    """Downloads one version of an object to a file, which may hold the beginning of it already.

    Raises StoreError if the object changes meanwhile.
    """
    with file.open("ab") as out, ThreadPoolExecutor(AT_ONCE) as pool:
        if out.tell() > entry.size:
            out.truncate(0)
        starts = range(file.stat().st_size, entry.size, PIECE)
        for at in range(0, len(starts), AT_ONCE):
            some = starts[at : at + AT_ONCE]
            parts = pool.map(lambda at: store.read(name, at, min(at + PIECE, entry.size)), some)
            for start, part in zip(some, parts, strict=True):
                if len(part) != min(PIECE, entry.size - start):
                    break
                out.write(part)
        out.flush()
        os.fsync(out.fileno())
    mixed = entry.size > PIECE and store.entry(name) != entry
    if mixed or file.stat().st_size != entry.size:
        file.unlink()
        raise StoreError(
            f"{store.named(name)} changed while it was downloaded: run the same command again once "
            "nobody writes to it"
        )


@contextlib.contextmanager
def disk_explained(folder: Path, needed: int) -> Iterator[None]:
    """Turns errors of the local disk within the block into one message."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        full = error.errno in FULL
        about = f"is full: {needed:,} bytes are needed" if full else f"fails: {error.strerror}"
        raise StoreError(
            f"the disk with the local copies of remote files, {folder}, {about}. Free some space, "
            f"or name a directory on another disk in {CACHE}"
        ) from None


def _linked(place: Path, files: Mapping[str, Path]) -> None:
    """Makes a directory of links to files, whole or not at all."""
    with disk_explained(place.parent, 0):
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".tree-", dir=place.parent))
        try:
            for name, file in files.items():
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                _link(file, partial / name)
            if not place.is_dir():
                partial.rename(place)
        except OSError:
            if not place.is_dir():  # else another process made it meanwhile
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _link(file: Path, link: Path) -> None:
    try:
        os.link(file, link)
    except OSError:  # the file system has no hard links
        link.symlink_to(file)
