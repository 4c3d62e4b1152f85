"""One process at a time has a folder of a store, and the others are told who has it."""

import threading

import pytest

from jaxtune.files.store import Store
from jaxtune.workdir import lease
from jaxtune.workdir.lease import Lease, LeaseError
from tests.objects import names

URL = "faulty://runs/x"


@pytest.fixture(autouse=True)
def quick(objects, monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0.02)
    monkeypatch.setattr(lease, "STALE", 1.0)
    monkeypatch.setattr(lease, "LOOK", 0.01)


def of(place, folder=""):
    return Lease(Store(URL), folder, "run", place)


def end(taken):
    """What a process that is killed leaves of its lease: it is not renewed any more."""
    taken._stopped.set()


def test_the_second_is_told_who_is_at_work(capsys):
    first = of("a")
    assert first.take() == ""
    with pytest.raises(LeaseError, match=rf"another run is using {URL}: .*process \d+ \(renewed "):
        of("b").take()
    assert "--take-over does not wait" in capsys.readouterr().err
    first.check()
    first.release()


def test_a_lease_given_back_is_taken_at_once(monkeypatch):
    monkeypatch.setattr(lease, "STALE", 1e6)
    first = of("a")
    first.take()
    first.release()
    second = of("b")
    assert second.take() == "a"
    assert names(URL) == ["leases/run/2.json"]
    end(second)


def test_a_lease_that_is_not_renewed_expires(monkeypatch, capsys):
    monkeypatch.setattr(lease, "STALE", 0.1)
    first = of("a")
    first.take()
    end(first)
    second = of("b")
    assert second.take() == "a"
    assert f"{URL} was last used by" in capsys.readouterr().err
    with pytest.raises(LeaseError, match=f"{URL} was taken over by another run: "):
        first.check()
    first.release()
    second.check()
    end(second)


def test_the_place_of_the_last_owner_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(lease, "STALE", 1e6)
    first = of("a")
    first.take()
    end(first)
    again = of("a")
    assert again.take() == "a"
    assert again.last_place() == "a"
    end(again)


def test_one_that_is_at_work_is_taken_over_by_force():
    first, second = of("a"), of("b")
    first.take()
    second.take(force=True)
    with pytest.raises(LeaseError, match="so that they do not disturb each other"):
        first.check()
    second.check()
    end(second)


def test_of_many_at_once_one_gets_it():
    first = of("old")
    first.take()
    first.release()
    start, taken = threading.Barrier(8), []

    def compete(number):
        mine = of(str(number))
        start.wait()
        try:
            mine.take()
            taken.append(mine)
        except LeaseError:
            pass

    threads = [threading.Thread(target=compete, args=(number,)) for number in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(taken) == 1
    taken[0].check()
    end(taken[0])


def test_a_lease_written_by_an_attempt_that_seemed_to_fail_is_ours(objects, monkeypatch):
    act, failed = objects.pipe_file, []

    def written_but_lost(self, path, value, **options):
        act(self, path, value, **options)
        if not failed:
            failed.append(path)
            raise ConnectionResetError("the answer was lost")

    monkeypatch.setattr(objects, "pipe_file", written_but_lost)
    mine = of("a")
    mine.take()
    assert failed
    mine.check()
    end(mine)


def test_a_store_that_cannot_be_reached_takes_no_lease_away(objects):
    mine = of("a")
    mine.take()
    end(mine)

    def fault(request, path):
        raise PermissionError("as the test wants")

    objects.fault = fault
    mine.check()


def test_folders_have_leases_of_their_own():
    first, second = of("a"), of("b", "eval")
    first.take()
    second.take()
    first.release()
    second.release()
    assert names(URL) == ["leases/eval/1.json", "leases/run/1.json"]


def test_what_is_no_lease_is_not_believed():
    Store(URL).write("leases/run/3.json", b"[]")
    with pytest.raises(LeaseError, match=r"leases/run/3.json is not what jaxtune wrote"):
        of("a").take()
