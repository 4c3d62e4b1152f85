"""Object stores by URL, such as s3://bucket/folder: reading, writing and listing, with retries.

fsspec brings the protocols. It knows versions of objects, ranges and writes that must not replace,
which etils.epath does not, and the datasets package needs it anyway.
"""

import contextlib
import datetime
import errno
import functools
import hashlib
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from jaxtune.display.errors import UserError

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
PATIENCE = 300.0  # seconds for which a request is repeated before it counts as failed
UNTRIED = 30.0  # the same as long as no request has succeeded: the address may be wrong
AT_ONCE = 16  # requests for what is known of objects at a time
FIRST, LONGEST = 0.5, 30.0  # pauses in seconds between attempts; each doubles the last
# HTTP statuses besides 5xx that a retry may not meet again: timeouts, conflicts and rate limits.
PASSING = (408, 409, 425, 429)
PASSING_SYSTEM = (errno.EBUSY, errno.EIO, errno.EAGAIN)  # what s3fs makes of throttling and others
NETWORK = ("aiohttp", "aiobotocore", "botocore", "gcsfs", "google", "httpx", "requests", "urllib3")
LASTING = re.compile("Credential|Token|Param|Profile|Auth|Permission|NoSuchBucket")
ALIASES = {"s3a": "s3", "gcs": "gs"}
EXTRAS = {"s3": ("s3", "s3fs"), "gs": ("gcs", "gcsfs")}  # what a protocol needs to be installed
CREDENTIALS = {
    "s3": "credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, from ~/.aws or from "
    "the role of the machine, and another server than Amazon's from AWS_ENDPOINT_URL",
    "gs": "credentials come from GOOGLE_APPLICATION_CREDENTIALS, from `gcloud auth "
    "application-default login` or from the service account of the machine",
}
OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"config_kwargs": {"connect_timeout": 10, "read_timeout": 60}},
}
VERSIONS = ("generation", "ETag", "etag", "md5Hash", "content_md5", "ino")
TIMES = ("LastModified", "updated", "mtime", "last_modified", "created")
SECRET = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^/@]*:[^/@]*@")  # a user and a password
SIGNATURE = re.compile(r"(https?://[^\s?]+)\?[^\s'\"]+")

Result = TypeVar("Result")


class StoreError(UserError):
    """A request to an object store that failed, or that kept failing."""


@dataclass(frozen=True)
class Entry:
    """An object as the store lists it."""

    size: int
    version: str  # another one once the object was written again
    modified: int  # time of writing, in nanoseconds since 1970


class Store:
    """The objects whose names begin with a URL; they are named relative to it.

    A name of "" is the object of the URL itself. Failures that may pass are retried for `PATIENCE`
    seconds; all others raise StoreError at once.
    """

    def __init__(self, url: str):
        if secret := SECRET.match(url):
            raise StoreError(
                f"{secret[1]}…@{url[secret.end() :]}: a URL must not hold a password, as it is "
                "written to files; remove all up to the @"
            )
        if not url.partition("://")[2].strip("/"):
            raise StoreError(f"{url}: expected the name of a bucket after the slashes")
        self.url, self._scheme = url.rstrip("/"), _scheme(url)
        self._fs = _opened(self._scheme)
        self._root = self._fs._strip_protocol(self.url)

    def __str__(self) -> str:
        return self.url

    def named(self, name: str) -> str:
        """Returns the URL of an object."""
        return f"{self.url}/{name}" if name else self.url

    def entry(self, name: str = "") -> Entry | None:
        """Returns what the store knows of an object, or None if there is none of that name."""
        try:
            found = self._attempted("read", name, lambda: self._fs.info(self._path(name)))
        except FileNotFoundError:
            return None
        return _entry(found) if found["type"] == "file" else None

    def entries(self, below: str = "") -> dict[str, Entry]:
        """Returns all objects below a folder, by their names relative to the URL."""

        def listed() -> dict[str, Any]:
            return self._fs.find(self._path(below), detail=True, withdirs=False)

        try:
            found = self._attempted("listed", below, listed)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        start = f"{self._root}/"
        names = {path.removeprefix(start): info for path, info in found.items() if path != start}
        return {
            name: _entry(info)
            for name, info in sorted(names.items())
            if name != self._root and not name.endswith("/") and info["type"] == "file"
        }

    def current(self, names: Iterable[str]) -> dict[str, Entry]:
        """Returns what the store knows of some objects now, without those that are gone.

        Lists may lag behind; this does not, as it asks for each object by its name.
        """
        names = list(names)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = zip(names, pool.map(self.entry, names), strict=True)
            return {name: entry for name, entry in found if entry is not None}

    def matching(self, pattern: str) -> list[str]:
        """Returns the names of the objects that match a glob pattern."""
        found = self._attempted("listed", pattern, lambda: self._fs.glob(self._path(pattern)))
        return [path.removeprefix(f"{self._root}/") for path in found]

    def read(self, name: str = "", start: int | None = None, end: int | None = None) -> bytes:
        """Returns the bytes of an object, or a range of them; raises FileNotFoundError."""
        path = self._path(name)
        return self._attempted("read", name, lambda: self._fs.cat_file(path, start=start, end=end))

    def write(self, name: str, content: bytes) -> None:
        """Writes an object whole, in place of one that is there."""
        path = self._path(name)
        with self._bucket_missed():
            self._attempted("written", name, lambda: self._fs.pipe_file(path, content))

    def create(self, name: str, content: bytes) -> bool:
        """Writes an object unless there is one of that name; returns whether it was written.

        The store decides where it can (S3, Google Cloud Storage); elsewhere two writers within
        the same moment may both succeed.
        """

        def created() -> bool:
            try:
                self._fs.pipe_file(self._path(name), content, mode="create")
            except NotImplementedError:
                return False
            return True

        try:
            with self._bucket_missed():
                if self._attempted("written", name, created):
                    return True
        except FileExistsError:
            return False
        if self.entry(name):
            return False
        self.write(name, content)
        return True

    def upload(self, name: str, file: Path) -> None:
        """Writes an object from a local file; it appears once all of it has arrived.

        Raises FileNotFoundError if the local file is gone.
        """
        path = self._path(name)
        with self._bucket_missed(file):
            self._attempted("written", name, lambda: self._fs.put_file(str(file), path))

    def remove(self, names: Iterable[str]) -> None:
        """Removes objects; those that are gone already do not matter."""
        for name in names:
            try:
                self._attempted("removed", name, lambda: self._fs.rm_file(self._path(name)))  # noqa: B023
            except FileNotFoundError:
                continue

    @contextlib.contextmanager
    def _bucket_missed(self, file: Path | None = None) -> Iterator[None]:
        """Turns the error of writing where there is no bucket into a message."""
        try:
            yield
        except FileNotFoundError:
            if file is not None and not file.exists():
                raise
            raise StoreError(
                f"{self.url} cannot be written: there is no such bucket; create it first"
            ) from None

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _attempted(self, what: str, name: str, action: Callable[[], Result]) -> Result:
        """Returns the result of a request, repeated while its failures may pass.

        Errors of names that are there, or are not there, are raised as they are.
        """
        patience = PATIENCE if self._scheme in _answered else UNTRIED
        end, pause = time.monotonic() + patience, FIRST
        while True:
            try:
                found = action()
                _answered.add(self._scheme)
                return found
            except (FileNotFoundError, FileExistsError, NotADirectoryError):
                _answered.add(self._scheme)
                raise
            except Exception as error:  # of fsspec, a cloud's client or the disk: no common base
                if _is_full(error):
                    raise
                if _taken(error):
                    raise FileExistsError(self.named(name)) from None
                problem = f"{self.named(name)} cannot be {what}: {_reason(error)}"
                if not may_pass(error):
                    raise StoreError(f"{problem}{_advice(self._scheme, error)}") from None
                if time.monotonic() + pause > end:
                    raise StoreError(
                        f"{problem}; it was tried again and again for {patience:.0f} seconds. Run "
                        "the same command again once the store can be reached"
                    ) from None
            time.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, LONGEST)


def is_remote(place: Any) -> bool:
    """Returns whether a place is a URL of an object store, and not a local path."""
    return isinstance(place, str) and URL.match(place) is not None


def joined(url: str, *names: str) -> str:
    """Returns the URL of a file below a URL; a name may have parts such as `..`."""
    scheme, _, path = url.rstrip("/").partition("://")
    parts: list[str] = path.split("/")
    for each in "/".join(names).split("/"):
        if each == ".." and len(parts) > 1:
            parts.pop()
        elif each not in ("", ".", ".."):
            parts.append(each)
    return f"{scheme}://{'/'.join(parts)}"


def is_inside(name: str) -> bool:
    """Returns whether the name of an object is that of a file below a folder, as a local path."""
    return "\0" not in name and not any(part in ("", ".", "..") for part in name.split("/"))


def bucket(url: str) -> str:
    """Returns the beginning of a URL that names a store: the scheme and the bucket or host."""
    scheme, _, path = url.partition("://")
    return f"{scheme}://{path.partition('/')[0]}"


def split(url: str) -> tuple[str, str]:
    """Returns the URL of the folder of a file, and the file's name."""
    folder, _, name = url.rstrip("/").rpartition("/")
    if not is_remote(folder):
        raise StoreError(f"{url}: expected a path below the bucket")
    return folder, name


def may_pass(error: BaseException) -> bool:
    """Returns whether a retry of a failed request may succeed."""
    for each in _causes(error):
        if (status := _status(each)) is not None:
            return status >= 500 or status in PASSING
    for each in _causes(error):
        if LASTING.search(type(each).__name__):
            return False
        if isinstance(each, ConnectionError | TimeoutError):
            return True
        if type(each).__module__.partition(".")[0] in NETWORK:
            return True
        if isinstance(each, OSError) and each.errno in PASSING_SYSTEM:
            return True
    return False


def digest(*parts: Any) -> str:
    """Returns a hexadecimal digest of plain values, as a name of a directory."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:40]


_answered: set[str] = set()  # schemes of the stores that this process has reached


def _scheme(url: str) -> str:
    scheme = url.partition("://")[0].lower()
    return ALIASES.get(scheme, scheme)


@functools.cache
def _opened(scheme: str) -> Any:
    import fsspec

    try:
        return fsspec.filesystem(scheme, use_listings_cache=False, **OPTIONS.get(scheme, {}))
    except ImportError as error:
        extra, package = EXTRAS.get(scheme, ("", ""))
        advice = f"run pip install 'jaxtune[{extra}]', or pip install {package}" if extra else error
        raise StoreError(
            f"{scheme}:// paths need a package that is not installed: {advice}"
        ) from None
    except ValueError:
        raise StoreError(
            f"{scheme}:// is no protocol that fsspec knows; expected a local path, gs://, s3:// or "
            "another protocol of fsspec"
        ) from None
    except Exception as error:  # of a cloud's client that looks for its credentials
        raise StoreError(
            f"{scheme}:// cannot be used: {_reason(error)}{_advice(scheme, error)}"
        ) from None


def _entry(info: dict[str, Any]) -> Entry:
    modified = next((_nanoseconds(info[name]) for name in TIMES if info.get(name)), 0)
    version = next((str(info[name]) for name in VERSIONS if info.get(name)), "")
    return Entry(int(info.get("size") or 0), f"{version.strip(chr(34))} {modified}", modified)


def _nanoseconds(moment: Any) -> int:
    """Returns a time as an integer that is the same whoever reads it."""
    if isinstance(moment, str):
        moment = datetime.datetime.fromisoformat(moment)
    if isinstance(moment, datetime.datetime):
        zoned = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
        since = zoned - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
        return since // datetime.timedelta(microseconds=1) * 1000
    return int(moment * 1_000_000) * 1000


def _causes(error: BaseException | None) -> list[BaseException]:
    """Returns an error and those that it was raised from, the outermost first."""
    found: list[BaseException] = []
    while error is not None and error not in found and len(found) < 8:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _status(error: BaseException) -> int | None:
    """Returns the HTTP status that an error of a cloud's client carries, or None."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's
        response = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    for found in (response, getattr(error, "status", None), getattr(error, "code", None)):
        if isinstance(found, int) or (isinstance(found, str) and found.isdecimal()):
            return int(found)
    return getattr(response, "status_code", None)


def _taken(error: BaseException) -> bool:
    """Returns whether a store refused to replace an object that must not be replaced."""
    return any(_status(each) == 412 for each in _causes(error))


def _is_full(error: BaseException) -> bool:
    """Returns whether a local disk is full."""
    full = (errno.ENOSPC, errno.EDQUOT)
    return any(isinstance(each, OSError) and each.errno in full for each in _causes(error))


def _reason(error: BaseException) -> str:
    """Describes an error in one line, without the signatures of URLs."""
    first = error if str(error) else next(filter(str, _causes(error)), error)
    text = " ".join(str(first).split()) or type(first).__name__
    text = SIGNATURE.sub(r"\1", text)
    if isinstance(first, TimeoutError) and "time" not in text.lower():
        text = f"no answer in time ({text})"
    return text if len(text) <= 300 else f"{text[:299]}…"


def _advice(scheme: str, error: BaseException) -> str:
    """Returns where credentials come from, if an error is about them or about permissions."""
    found = CREDENTIALS.get(scheme, "")
    refused = any(
        isinstance(each, PermissionError)
        or _status(each) in (401, 403)
        or re.search("Credential|Token|Auth", type(each).__name__)
        for each in _causes(error)
    )
    return f"; {found}" if found and refused else ""
