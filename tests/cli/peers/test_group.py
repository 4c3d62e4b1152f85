"""Processes that join, watch and leave each other; here they are threads, over loopback."""

import contextlib
import os
import socket
import threading
import time

import pytest

from jaxtune.cli.peers import group, hub, member
from jaxtune.cli.peers.group import LOST, Fate, JoinError, message
from jaxtune.cli.peers.hub import Hub
from jaxtune.cli.peers.member import Peer
from jaxtune.display.errors import UserError
from tests.processes import free_port


class Processes:
    """Groups of one command, and the fates that ended them, by index."""

    def __init__(self, count: int, port: int | None = None):
        self.count, self.fates = count, {}
        self.address = f"127.0.0.1:{port or free_port()}"
        self.joined = {}

    def make(self, index: int, /, **changes) -> Hub | Peer:
        found = (Peer if index else Hub)(
            changes.pop("address", self.address),
            index,
            changes.pop("count", self.count),
            lambda fate: self.fates.setdefault(index, fate),
        )
        found.hello |= changes
        return found

    def join(self, indices=None, timeout: float = 20, **changes) -> "Processes":
        """Joins them all at once; errors are kept in place of addresses."""

        def one(index: int) -> None:
            made = self.made[index] = self.make(index, **(changes if index else {}))
            try:
                self.joined[index] = made.join(timeout)
            except UserError as error:
                self.joined[index] = error

        self.made: dict[int, Hub | Peer] = {}
        chosen = range(self.count) if indices is None else indices
        threads = [threading.Thread(target=one, args=(index,)) for index in chosen]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return self

    def wait(self, *indices: int) -> None:
        end = time.monotonic() + 20
        while not all(index in self.fates for index in indices):
            assert time.monotonic() < end, self.fates
            time.sleep(0.01)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Times that are short enough to wait for."""
    for module in (group, hub, member):
        for name, value in {"BEAT": 0.05, "PAUSE": 0.05, "GRACE": 0.2, "FAREWELL": 2.0}.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)


def silence(monkeypatch, seconds: float) -> None:
    for module in (group, hub, member):
        monkeypatch.setattr(module, "SILENCE", seconds)


def cut(peer: Peer) -> None:
    """Closes the connection of a process, as the system does when it kills one."""
    peer.over = True
    peer._loop.call_soon_threadsafe(peer._writer.transport.abort)


@pytest.fixture
def three():
    found = Processes(3).join()
    assert [isinstance(each, str) for each in found.joined.values()] == [True] * 3, found.joined
    yield found
    for each in found.made.values():
        each.over = True


def test_a_process_that_is_killed_ends_all_others(three):
    cut(three.made[2])
    three.wait(0, 1)
    assert three.fates[0] == three.fates[1]
    assert (three.fates[0].index, three.fates[0].code) == (2, LOST)
    text = message(three.fates[1], 3, "Run it again.")
    host = socket.gethostname()
    assert text == (
        f"process 2 of 3, on {host}, is lost: it was killed, or its host went down. Run it again."
    )


def test_the_first_process_may_be_killed_too(three):
    first = three.made[0]
    first.over = True
    for each in list(first._members.values()):
        first._loop.call_soon_threadsafe(each.writer.transport.abort)
    three.wait(1, 2)
    assert {three.fates[1].index, three.fates[2].index} == {0}


def test_silent_processes_are_lost(monkeypatch):
    found = Processes(3).join()
    found.made[1].over = True  # it beats no more
    silence(monkeypatch, 0.5)
    found.wait(0, 2)
    assert (found.fates[2].index, found.fates[2].code) == (1, LOST)
    assert found.fates[2].text == "nothing was heard from it for 0 seconds"
    for each in found.made.values():
        each.over = True


def test_a_silent_first_process_is_lost(monkeypatch):
    found = Processes(2).join()
    monkeypatch.setattr(hub, "BEAT", 100.0)
    time.sleep(0.2)
    silence(monkeypatch, 0.3)
    found.wait(1)
    assert found.fates[1].index == 0
    for each in found.made.values():
        each.over = True


def test_the_error_of_one_process_ends_all_others_in_its_words(three):
    three.made[1].failing(UserError("rows.jsonl:3: bad"), 2, "rows.jsonl:3: bad")
    three.wait(0, 2)
    assert three.fates[0] == three.fates[2] == Fate(1, socket.gethostname(), 2, "rows.jsonl:3: bad")
    assert message(three.fates[0], 3, "").endswith("has ended: rows.jsonl:3: bad")
    assert 1 not in three.fates


@pytest.mark.slow
def test_an_error_of_the_first_process_reaches_the_others(three):
    three.made[0].fail(2, "no such file")
    three.wait(1, 2)
    assert three.fates[2].text == "no such file"


def test_an_error_that_all_have_is_each_one_s_own(three):
    for each in three.made.values():
        threading.Thread(target=each.fail, args=(2, "wrong config")).start()
    time.sleep(0.6)
    assert not three.fates


def test_a_computation_that_broke_off_waits_for_its_cause(three, monkeypatch):
    waited = []
    monkeypatch.setattr(group.time, "sleep", waited.append)
    three.made[1].failing(ValueError("UNKNOWN: Gloo AllGather failed: Connection reset"), 1, "x")
    assert waited[0] > group.SILENCE
    waited.clear()
    error = UserError("a row")
    error.__context__, error.__suppress_context__ = ValueError("INTERNAL: x"), True
    three.made[2].failing(error, 2, "a row")
    assert not [each for each in waited if each > group.SILENCE]


def test_those_that_end_in_order_are_not_lost(three):
    for each in three.made.values():
        each.leave()
    for index in (1, 2):
        cut(three.made[index])
    time.sleep(0.3)
    assert not three.fates


def test_what_jax_says_reaches_its_service(three):
    port = int(three.joined[0].rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)) as service:
        client = socket.create_connection(("127.0.0.1", int(three.joined[2].rpartition(":")[2])))
        far, _ = service.accept()
        client.sendall(b"PRI * HTTP/2.0")
        assert far.recv(100) == b"PRI * HTTP/2.0"
        far.sendall(b"settings")
        assert client.recv(100) == b"settings"
        # If the service is gone, its client is left without an answer: it would abort.
        far.close()
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.recv(100)
        client.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"version": "0"}, "install the same version on every host"),
        ({"count": 3}, "has --process-count 2, this one 3"),
        ({"index": 0}, "--process-index 0 is taken already: start one process for each index from"),
    ],
)  # fmt: skip
def test_processes_that_do_not_fit_together_are_refused(changes, problem):
    found = Processes(2).join(timeout=1.0, **changes)
    assert problem in str(found.joined[1])
    assert "some have not joined within 1 seconds: 1; start the same" in str(found.joined[0])


def test_a_first_process_that_is_not_there_is_named():
    found = Processes(2).join([1], timeout=0.2)
    problem = f"process 0 cannot be reached at {found.address} within 0 seconds"
    assert problem in str(found.joined[1])
    found.address = "nowhere.invalid:1"
    problem = "process 0 cannot be reached at nowhere.invalid:1"
    assert problem in str(found.join([1], 0.2).joined[1])


@pytest.mark.slow
def test_those_that_wait_hear_who_is_missing():
    found = Processes(4).join([0, 2], timeout=1.0)
    for index in (0, 2):
        assert isinstance(found.joined[index], JoinError)
        assert "some have not joined within 1 seconds: 1, 3; start" in str(found.joined[index])


def test_a_port_that_is_in_use_is_named():
    with socket.create_server(("", 0)) as taken:
        found = Processes(2, taken.getsockname()[1]).join([0])
    assert "cannot listen on that port: " in str(found.joined[0])


def test_strangers_are_turned_away(three):
    port = int(three.address.rpartition(":")[2])
    for said in (b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b"x" * 200_000, os.urandom(64) + b"\n"):
        stranger = socket.create_connection(("127.0.0.1", port))
        with stranger, contextlib.suppress(OSError):  # one of several, if it is reset by now
            stranger.sendall(said)
            stranger.shutdown(socket.SHUT_WR)
            assert stranger.recv(10) == b""
    assert not three.fates
