"""Object stores on this machine whose requests fail as a test wants: in this process, and S3."""

import contextlib
import os
import threading
import time
from collections import Counter
from typing import ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from jaxtune.display import escapes
from jaxtune.files import fetched, store
from jaxtune.workdir import mirror

WRITES = ("pipe_file", "put_file", "rm_file")


class Killed(PermissionError):
    """The end of the process, as far as the store can tell: no request succeeds any more."""


class Objects(MemoryFileSystem):
    """A store in memory, faulty://, that asks `fault` before every request."""

    protocol = "faulty"
    store: ClassVar = {}
    pseudo_dirs: ClassVar = [""]
    requests: ClassVar = []

    @staticmethod
    def fault(request, path):
        """Does nothing; tests put another function here."""

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.split("://")[-1].strip("/")


def _asking(name):
    act = getattr(MemoryFileSystem, name)

    def asked(self, *arguments, **named):
        path = arguments[-1] if name == "put_file" else arguments[0]
        Objects.requests.append((name, path))
        Objects.fault(name, path)
        return act(self, *arguments, **named)

    return asked


for each in (*WRITES, "cat_file", "info", "find"):
    setattr(Objects, each, _asking(each))
fsspec.register_implementation("faulty", Objects, clobber=True)


def nth(number, error, requests=WRITES):
    """A fault: from the `number`th of some requests on, each raises an error."""
    counted = Counter()
    lock = threading.Lock()

    def fault(request, path):
        with lock:
            counted[request in requests] += 1
        if counted[True] >= number:
            raise error("as the test wants")

    return fault


@pytest.fixture
def objects(monkeypatch):
    """The empty store, quick to retry."""
    Objects.store.clear()
    Objects.requests.clear()
    monkeypatch.setattr(store, "FIRST", 0.001)
    monkeypatch.setattr(store, "LONGEST", 0.002)
    monkeypatch.setattr(Objects, "fault", staticmethod(lambda request, path: None))
    yield Objects
    _forget()


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """`machine("b")` makes this process one of that name, which knows only its own disk."""

    def switch(name):
        _forget()
        monkeypatch.setenv(fetched.CACHE, str(tmp_path / name))

    switch("a")
    yield switch
    _forget()


def _forget():
    fetched.forget()
    mirror.forget()
    escapes.ALIASES.clear()


def put(url, folder):
    """Uploads the files of a folder."""
    there = store.Store(url)
    for file in folder.iterdir():
        if file.is_file():
            there.upload(file.name, file)
    return url


def names(url):
    """The names of all objects below a URL."""
    return list(store.Store(url).entries())


# S3


class Troubled:
    """A web application before moto's: some requests fail, are cut off, or wait.

    `kinds` are the troubles that every `every`th request meets in turn: an HTTP status, "reset" or
    seconds. With `lag`, lists are those of so many seconds ago.
    """

    def __init__(self, application):
        self._application = application
        self._lock = threading.Lock()
        self._count = 0
        self._lists = {}
        self.every, self.kinds, self.lag = 0, (), 0.0
        self.met = Counter()

    def __call__(self, environ, start):
        with self._lock:
            self._count += 1
            turn = self.every and self._count % self.every == 0
            kind = self.kinds[self._count // self.every % len(self.kinds)] if turn else None
            self.met[kind] += kind is not None
        if kind == "reset":
            with contextlib.suppress(OSError):
                environ["werkzeug.socket"].shutdown(2)
        elif isinstance(kind, float):
            time.sleep(kind)
        elif kind:
            code = "SlowDown" if kind == 503 else "InternalError"
            start(f"{kind} Trouble", [("Content-Type", "application/xml")])
            return [f"<Error><Code>{code}</Code><Message>again</Message></Error>".encode()]
        if (
            self.lag
            and "list-type" in environ["QUERY_STRING"]
            and "max-keys" not in environ["QUERY_STRING"]
        ):
            return self._late(environ, start)
        return self._application(environ, start)

    def _late(self, environ, start):
        """Answers with the list of the same request some time ago, or with one of no objects."""
        said = []
        body = b"".join(self._application(environ, lambda *given: said.append(given)))
        key, now = environ["RAW_URI"], time.monotonic()
        with self._lock:
            kept = self._lists.setdefault(key, [])
            kept.append((now, body))
            old = [each for at, each in kept if at <= now - self.lag]
        if not old:
            bucket = environ["PATH_INFO"].split("/")[1]
            old = [
                f"<ListBucketResult><Name>{bucket}</Name><KeyCount>0</KeyCount>"
                "<IsTruncated>false</IsTruncated></ListBucketResult>".encode()
            ]
        start("200 OK", [("Content-Type", "application/xml")])
        return [old[-1]]


@pytest.fixture(scope="session")
def s3_server():
    """moto's S3 server with troubles: (its URL, the troubles)."""
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'jaxtune[s3]'")
    pytest.importorskip(
        "moto", reason="moto is not installed: pip install -r requirements-test.txt"
    )
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_request(self, *_):
            pass

        def log(self, *_):
            pass

    troubled = Troubled(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, troubled, threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.port}", troubled
    server.shutdown()


@pytest.fixture
def s3(s3_server, monkeypatch):
    """A bucket of its own: (its URL, the troubles, the environment of a process that uses it)."""
    url, troubled = s3_server
    environment = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
        "NO_PROXY": "127.0.0.1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    unopened()
    bucket = f"bucket{time.monotonic_ns()}"
    fsspec.filesystem("s3", use_listings_cache=False).mkdir(bucket)
    yield f"s3://{bucket}", troubled, os.environ | environment
    troubled.every = troubled.lag = 0
    unopened()


def unopened():
    """Makes the next use of S3 look at the environment again."""
    store._opened.cache_clear()
    fsspec.get_filesystem_class("s3").clear_instance_cache()
