"""Object stores: which failures are retried, and what the others say."""

import errno
import sys

import pytest

from jaxtune.files import store
from jaxtune.files.store import Store, StoreError, is_remote, joined, may_pass, split
from tests.objects import nth


class Answer(Exception):
    """An error of a cloud's client with an HTTP status."""

    def __init__(self, status):
        super().__init__(f"status {status}")
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


def failing(times, error):
    """A fault: the first requests raise an error."""
    left = [times]

    def fault(request, path):
        if left[0]:
            left[0] -= 1
            raise error

    return fault


@pytest.mark.parametrize(
    "error",
    [
        Answer(500),
        Answer(503),
        Answer(429),
        ConnectionResetError("reset"),
        TimeoutError(),
        OSError(errno.EBUSY, "SlowDown"),
    ],
)
def test_what_may_pass_is_tried_again(objects, error):
    assert may_pass(error)
    objects.fault = failing(3, error)
    Store("faulty://a").write("b", b"content")
    assert objects.store["/a/b"].getvalue() == b"content"


@pytest.mark.parametrize("error", [Answer(403), PermissionError("Access Denied"), Answer(400)])
def test_what_stays_is_told_at_once(objects, error):
    objects.fault = failing(1, error)
    with pytest.raises(StoreError, match=r"faulty://a/b cannot be written: (status|Access)"):
        Store("faulty://a").write("b", b"content")
    assert len([each for each, _ in objects.requests if each == "pipe_file"]) == 1


def test_a_status_of_the_cause_counts():
    wrapped = OSError(errno.EINVAL, "no")
    wrapped.__cause__ = Answer(503)
    assert may_pass(wrapped)


def test_patience_ends_in_one_message(objects, monkeypatch):
    monkeypatch.setattr(store, "PATIENCE", 0.02)
    objects.fault = nth(1, TimeoutError, ("info",))
    with pytest.raises(StoreError, match=r"cannot be read: .*again and again for 0 seconds"):
        Store("faulty://a").entry("b")


def test_signatures_of_urls_are_not_shown(objects):
    objects.fault = failing(1, PermissionError("no: https://host/key?X-Amz-Signature=5ecret now"))
    with pytest.raises(StoreError, match="https://host/key now") as told:
        Store("faulty://a").write("b", b"")
    assert "5ecret" not in str(told.value)


def test_a_missing_package_is_named(monkeypatch):
    store._opened.cache_clear()
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "gs", raising=False)
    with pytest.raises(StoreError, match=r"gs:// paths need .* pip install 'jaxtune\[gcs\]'"):
        Store("gs://bucket/x")


def test_a_protocol_that_nobody_knows_is_refused():
    with pytest.raises(StoreError, match="no-such:// is no protocol that fsspec knows"):
        Store("no-such://bucket/x")


def test_objects_are_created_once(objects):
    there = Store("faulty://a/run")
    assert there.create("lease", b"one")
    assert not there.create("lease", b"two")
    assert there.read("lease") == b"one"


def test_objects_are_listed_by_their_names_below_the_url(objects):
    there = Store("faulty://a/run")
    for name in ("x", "y/z", "y/w.txt"):
        there.write(name, name.encode())
    Store("faulty://a/run2").write("x", b"")
    assert list(there.entries()) == ["x", "y/w.txt", "y/z"]
    assert list(there.entries("y")) == ["y/w.txt", "y/z"]
    assert there.entry("y") is None
    assert there.entry("x").size == 1
    assert sorted(there.matching("y/*.txt")) == ["y/w.txt"]
    assert there.read("y/w.txt", 2, 4) == b"w."
    there.remove(["x", "never"])
    assert there.entry("x") is None
    assert there.current(["x", "y/z"]).keys() == {"y/z"}


def test_another_version_is_known_by_its_entry(objects):
    there = Store("faulty://a")
    there.write("x", b"one")
    before = there.entry("x")
    there.write("x", b"two")
    assert there.entry("x") != before
    assert before.modified > 1_600_000_000 * 10**9


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("s3://bucket/x", True),
        ("gs://b", True),
        ("memory://a", True),
        ("s3://", True),
        ("/local/s3://x", False),
        ("C:\\x", False),
        ("owner/name", False),
        ("data/*.jsonl", False),
        (None, False),
    ],
)
def test_urls_are_told_from_paths(place, expected):
    assert is_remote(place) == expected


def test_parts_of_urls():
    assert joined("s3://b/data/", "../pictures", "a.png") == "s3://b/pictures/a.png"
    assert joined("s3://b/data", "./x", "y.png") == "s3://b/data/x/y.png"
    assert split("s3://b/data/x.jsonl") == ("s3://b/data", "x.jsonl")
    with pytest.raises(StoreError, match="s3://b: expected a path below the bucket"):
        split("s3://b")


@pytest.mark.parametrize("url", ["memory://", "memory:///"])
def test_a_url_without_a_bucket_is_refused(url):
    with pytest.raises(StoreError, match="expected the name of a bucket"):
        Store(url)


def test_a_url_with_a_password_is_refused_without_showing_it():
    with pytest.raises(StoreError, match="memory://…@a/b: a URL must not hold a password") as told:
        Store("memory://me:5ecret@a/b")
    assert "5ecret" not in str(told.value)


@pytest.mark.parametrize("kind", [500, 503, "reset", 0.2])
def test_s3_with_troubles(s3, kind, tmp_path, monkeypatch):
    bucket, troubled, _ = s3
    monkeypatch.setattr(store, "FIRST", 0.01)
    monkeypatch.setattr(store, "PATIENCE", 20.0)
    troubled.every, troubled.kinds = 3, (kind,)
    there = Store(f"{bucket}/x")
    for number in range(4):
        there.write(str(number), b"content")
    file = tmp_path / "file"
    file.write_bytes(b"file")
    there.upload("file", file)
    assert there.read("file") == b"file"
    assert list(there.entries()) == ["0", "1", "2", "3", "file"]
    assert troubled.met[kind]


def test_s3_decides_who_creates_an_object(s3):
    there = Store(f"{s3[0]}/x")
    assert there.create("lease", b"one")
    assert not there.create("lease", b"two")
    assert there.read("lease") == b"one"


def test_s3_without_the_bucket_or_the_right_is_one_message(s3, monkeypatch):
    with pytest.raises(StoreError, match="there is no such bucket; create it first"):
        Store("s3://no-such-bucket/x").write("a", b"")
    assert Store("s3://no-such-bucket/x").entry("a") is None
