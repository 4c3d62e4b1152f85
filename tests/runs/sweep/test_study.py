"""The study of a sweep: its trials, samplers, extensions, leases, and the storages it lives in."""

import os
import shutil
import socket
import subprocess
import sys
import time

import pytest

pytest.importorskip("optuna")

from optuna.trial import TrialState

from jaxtune.runs.sweep import storage as storages
from jaxtune.runs.sweep.leases import Leases, Worker
from jaxtune.runs.sweep.space import integer, log
from jaxtune.runs.sweep.spec import SAMPLERS, SweepError
from jaxtune.runs.sweep.storage import JOURNAL, opened
from jaxtune.runs.sweep.study import Study
from tests.runs.sweep.studies import Sums, config, finish, spec, work

DRAWN = {
    "optim.lr": log(1e-5, 1e-2),
    "trainable.kind": ["lora", "full"],
    "trainable.rank": integer(2, 8),
    "trainable.targets": [["q_proj"], "attention"],
}


@pytest.fixture
def held(tmp_path):
    with opened(None, tmp_path) as storage:
        yield storage


def draw(storage, wanted, name="study") -> list[dict]:
    """The overrides of all trials, each of which ends before the next begins."""
    study, found = Study.of(wanted, storage, name), []
    for number in range(study.count):
        overrides = study.begin(number)
        study.end(number, TrialState.COMPLETE, overrides["optim.lr"])
        found.append(overrides)
    return found


def test_a_grid_has_its_points(held):
    assert draw(held, spec()) == spec().space.points


@pytest.mark.parametrize("sampler", [each for each in SAMPLERS if each != "grid"])
def test_samplers_draw_from_the_space_and_draw_the_same_again(sampler, held):
    wanted = spec(DRAWN, sampler=sampler, trials=6)
    found = draw(held, wanted)
    for each in found:
        assert 1e-5 <= each["optim.lr"] <= 1e-2
        assert ("trainable.rank" in each) == (each["trainable.kind"] == "lora")
        assert 2 <= each.get("trainable.rank", 2) <= 8
        assert each.get("trainable.targets", "attention") in (["q_proj"], "attention")
    assert len({each["optim.lr"] for each in found}) == 6
    assert draw(held, wanted, "again") == found


def test_a_sampler_without_its_package_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "cmaes", None)
    with pytest.raises(SweepError, match="sampler: cmaes needs the package cmaes"):
        storages.required("cmaes")
    assert storages.required("tpe")


def test_without_optuna_one_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SweepError, match=r"pip install 'jaxtune\[sweep\]'"):
        storages.required()


def test_another_space_is_a_new_study_or_an_extension(tmp_path):
    finish(spec(), tmp_path)
    wider = spec({"optim.lr": [0.001, 0.03], "seed": [0, 1]})
    with pytest.raises(SweepError, match=r"another sweep:\n  space, optim\.lr: \[0\.001, 0\.01, 0"):
        finish(wider, tmp_path)
    found = finish(wider, tmp_path, extend=True)
    assert sorted(each.number for each in found) == list(range(8))
    assert [each.overrides["optim.lr"] for each in found if each.number > 5] == [0.03, 0.03]
    assert all(each.state == "complete" for each in found)
    again = finish(wider, tmp_path)  # the extended sweep is now the sweep
    assert again == found


def test_more_trials_of_a_sampler_keep_the_former_ones(tmp_path):
    first = finish(spec(DRAWN, sampler="tpe", trials=3), tmp_path)
    more = spec({**DRAWN, "trainable.targets": ["attention"]}, sampler="tpe", trials=5)
    found = {each.number: each for each in finish(more, tmp_path, extend=True)}
    assert len(found) == 5 and all(found[each.number] == each for each in first)
    with pytest.raises(SweepError, match="has 5 trials already"):
        finish(spec(DRAWN, sampler="tpe", trials=2), tmp_path, extend=True)


def test_another_config_or_metric_is_always_another_study(tmp_path):
    finish(spec(), tmp_path)
    with pytest.raises(SweepError, match=r"another config:\n  steps: 20 -> 30"):
        finish(spec(base=config(steps=30)), tmp_path, extend=True)


def test_of_racing_claims_the_first_holds(held, tmp_path):
    Study.of(spec(), held, "study")
    workers = [Leases(held, "study", Worker(f"w{n}", "host", "here"), tmp_path, 60) for n in (1, 2)]
    first = workers[0].take(3)
    assert first is not None and first.valid
    # A worker that saw the trial unclaimed a moment ago claims it, too.
    late = Leases(held, "study", Worker("w3", "host", "here"), tmp_path, 60)
    late._holder = lambda trial, claims, real=late._holder: real(trial, [])
    assert late.take(3) is None
    assert first.valid


def test_a_dead_worker_on_this_machine_gives_its_trial_back_at_once(held, tmp_path):
    dead = Leases(held, "study", Worker("dead", "host", "here"), tmp_path, 60)
    other = Leases(held, "study", Worker("other", "host", "here"), tmp_path, 60)
    lease = dead.take(0)
    again = other.take(0)
    assert again is not None and again.valid and not lease.valid


def test_a_worker_elsewhere_is_dead_once_it_gives_no_sign_of_life(held, tmp_path):
    away = Leases(held, "study", Worker("away", "there", "elsewhere"), tmp_path, 60)
    here = Leases(held, "study", Worker("here", "here", "here"), tmp_path, 0.2)
    lease = away.take(0)
    assert here.take(0) is None
    for _ in range(3):
        time.sleep(0.15)
        away.beat(lease)
        assert here.take(0) is None
    time.sleep(0.25)
    assert here.take(0) is not None and not lease.valid
    lease = away.take(1)
    lease.end()
    assert here.take(1) is not None  # given back, so nobody waits


def test_a_line_that_a_killed_writer_left_is_dropped(tmp_path):
    finish(spec(), tmp_path)
    journal = tmp_path / JOURNAL
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 5, "wor')
    assert len(finish(spec(), tmp_path)) == 6
    assert journal.read_bytes().startswith(whole) and b'"wor{' not in journal.read_bytes()


def test_a_journal_that_optuna_did_not_write(tmp_path):
    (tmp_path / JOURNAL).write_text("not JSON\nat all\n")
    with (
        pytest.raises(SweepError, match="is not what Optuna wrote"),
        opened(None, tmp_path),
    ):
        pass


@pytest.mark.parametrize(
    "url, message",
    [
        ("postgresql://me:secret@127.0.0.1:1/sweeps", "does not answer"),
        ("sqlite:////no/such/folder/study.db", "does not answer"),
        ("postgres", "expected a database URL"),
        ("nodb://host/x", "expected a database URL"),
    ],
)
def test_a_storage_that_does_not_answer(url, message, tmp_path):
    with pytest.raises(SweepError, match=message) as error, opened(url, tmp_path):
        pass
    assert "secret" not in str(error.value)


def test_workers_that_begin_at_once_create_the_tables_of_one_database(tmp_path, monkeypatch):
    """PostgreSQL refuses a table that another worker creates at the same moment."""
    import optuna
    import sqlalchemy

    whole, seen = optuna.storages.RDBStorage, []

    def contended(*given, **named):
        seen.append(given)
        if len(seen) == 1:
            problem = ValueError("Key (typname)=(studies) already exists.")
            raise sqlalchemy.exc.IntegrityError("CREATE TABLE studies", {}, problem)
        return whole(*given, **named)

    monkeypatch.setattr(storages, "PAUSE", 0.0)
    monkeypatch.setattr(optuna.storages, "RDBStorage", contended)
    with opened(f"sqlite:///{tmp_path}/study.db", tmp_path) as storage:
        assert storage.get_all_studies() == []
    assert len(seen) == 2


@pytest.mark.slow
def test_sqlite_holds_a_study(tmp_path):
    found = finish(spec(), tmp_path, storage=f"sqlite:///{tmp_path}/study.db")
    assert [each.state for each in found] == ["complete"] * 6
    assert not (tmp_path / JOURNAL).exists()


@pytest.fixture(scope="module")
def postgres(tmp_path_factory):
    """The URL of a PostgreSQL server on loopback, which a user other than root must run."""
    pytest.importorskip("psycopg")
    binary = shutil.which("postgres")
    if binary is None:
        pytest.skip("PostgreSQL is not installed")
    folder = os.path.dirname(os.path.realpath(binary))
    if not os.path.exists(f"{folder}/initdb"):
        folder = os.path.dirname(binary)
    user = {"user": "nobody"} if os.geteuid() == 0 else {}
    place = tmp_path_factory.mktemp("postgres")
    for each in (place, *place.parents):
        if each.stat().st_uid == os.geteuid() and os.geteuid() == 0 and each != each.parent:
            each.chmod(each.stat().st_mode | 0o055)
    if user:
        shutil.chown(place, "nobody")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = place / "data"
    settings = dict(user) | dict(cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    made = [f"{folder}/initdb", "-D", data, "-U", "me", "--auth=trust", "--no-sync"]
    subprocess.run(made, check=True, **settings)
    given = ["-D", data, "-p", str(port), "-k", place, "-c", "listen_addresses=127.0.0.1"]
    server = subprocess.Popen([f"{folder}/postgres", *given], **settings)
    url = f"postgresql://me@127.0.0.1:{port}/postgres"
    try:
        wait_for(url)
        yield url
    finally:
        server.terminate()
        server.wait()


def wait_for(url: str) -> None:
    """Wait until a server answers."""
    import psycopg

    for _ in range(300):
        try:
            return psycopg.connect(url).close()
        except psycopg.OperationalError:
            time.sleep(0.1)
    raise TimeoutError("PostgreSQL did not start")


@pytest.mark.slow
def test_postgresql_holds_a_study_of_two_machines(postgres, tmp_path):
    ran = []

    def look(trial):
        """While the first machine has trial 1, another one may take the later ones only."""
        ran.append(trial.number)
        if trial.number != 1:
            return
        with work(spec(), tmp_path / "two", Sums(), place="two", storage=postgres) as second:
            leases = [second.leases.take(number) for number in range(6)]
            assert [lease is None for lease in leases[:3]] == [False, True, False]
            for lease in filter(None, leases):
                lease.end()

    found = finish(spec(), tmp_path / "one", Sums(before=look), place="one", storage=postgres)
    assert ran == list(range(6)) and {each.state for each in found} == {"complete"}
    again = finish(spec(), tmp_path / "two", Sums(before=look), place="two", storage=postgres)
    assert ran == list(range(6)) and again == found
