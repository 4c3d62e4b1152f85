"""Optuna's storages: a journal file, or a database at a URL.

Nothing imports this module before `required` has found that Optuna is installed.
"""

import contextlib
import importlib.util
import os
import re
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import filelock

from jaxtune.files import UnwritableError
from jaxtune.runs.sweep.spec import SweepError

JOURNAL = "study.journal"  # in the workdir of a sweep
EXTRA = "pip install 'jaxtune[sweep]'"
# Packages that Optuna's samplers import besides its own.
PACKAGES = {"cmaes": ("cmaes",), "gp": ("scipy", "torch"), "qmc": ("scipy",)}
TIMEOUT = 10  # seconds within which a database must answer
TRIES, PAUSE = 20, 0.2  # attempts to open a database, and seconds between them


def required(sampler: str = "") -> ModuleType:
    """Imports Optuna, and raises SweepError if it, or what a sampler needs, is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise SweepError(
            f"a sweep needs Optuna ({error}); install the extra sweep: {EXTRA}"
        ) from None
    for package in PACKAGES.get(sampler, ()):
        if importlib.util.find_spec(package) is None:
            raise SweepError(
                f"sampler: {sampler} needs the package {package}: pip install {package}, or choose "
                "another sampler"
            )
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


class JournalLock:
    """Lock of a journal file, which the system releases when its holder dies.

    Whoever takes it removes what a writer left that was killed in the middle of a line.
    """

    def __init__(self, file: Path):
        self._file, self._lock = file, filelock.FileLock(file.with_name(f".{file.name}.lock"))

    def acquire(self) -> bool:
        """Waits for the lock."""
        self._lock.acquire()
        with self._file.open("rb+") as journal:
            _cut_torn_line(journal)
        return True

    def release(self) -> None:
        """Gives the lock up."""
        self._lock.release()


def _cut_torn_line(journal) -> None:
    end = journal.seek(0, os.SEEK_END)
    if not end:
        return
    journal.seek(end - 1)
    if journal.read() == b"\n":
        return
    journal.seek(0)
    journal.truncate(journal.read().rfind(b"\n") + 1)


@contextlib.contextmanager
def opened(url: str | None, workdir: Path) -> Iterator:
    """Opens the storage of a sweep: a database at a URL, or by default a file in the workdir.

    Errors of the database, then and later, become a SweepError without the URL's password.
    """
    optuna = required()
    if url is None:
        file = workdir / JOURNAL
        try:
            backend = optuna.storages.journal.JournalFileBackend(str(file), JournalLock(file))
            storage = optuna.storages.JournalStorage(backend)
        except OSError as error:
            raise UnwritableError(file, error) from None
        except ValueError as error:  # JSONDecodeError among them
            raise SweepError(
                f"{file} is not what Optuna wrote ({error}); move it away to begin a new study"
            ) from None
        yield storage
        return
    with _answering(url):
        storage = _database(optuna, url)
        try:
            yield storage
        finally:
            storage.remove_session()
            storage.engine.dispose()


def _database(optuna: ModuleType, url: str):
    """Opens a database, and creates the tables of Optuna in it if they are missing.

    Of workers that begin at once, each may find that another has just created a table.
    """
    import sqlalchemy

    left = TRIES
    try:
        while True:
            try:
                return optuna.storages.RDBStorage(url, engine_kwargs=_engine_settings(url))
            except sqlalchemy.exc.SQLAlchemyError as error:
                left -= 1
                if not left or "already exists" not in str(error):
                    raise
            time.sleep(PAUSE)
    except ImportError as error:
        raise SweepError(
            f"--storage {_shown(url)}: its driver is not installed ({error}); for PostgreSQL: "
            f"{EXTRA}"
        ) from None
    except (sqlalchemy.exc.ArgumentError, sqlalchemy.exc.NoSuchModuleError) as error:
        raise SweepError(
            f"--storage {_shown(url)}: {error}; expected a database URL such as "
            "postgresql://user@host/database or sqlite:///file.db"
        ) from None


def _engine_settings(url: str) -> dict:
    names = {"postgresql": "connect_timeout", "mysql": "connect_timeout", "sqlite": "timeout"}
    option = next((names[each] for each in names if url.startswith(each)), None)
    settings = {"pool_pre_ping": True}
    return settings | ({"connect_args": {option: TIMEOUT}} if option else {})


@contextlib.contextmanager
def _answering(url: str) -> Iterator[None]:
    """Turns errors of a database into a SweepError."""
    import optuna
    import sqlalchemy

    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise SweepError(
            f"--storage {_shown(url)}: the database does not answer: {reason}"
        ) from None


def _shown(url: str) -> str:
    """Returns a URL without its password."""
    return re.sub(r"://([^:/@]*):[^@]*@", r"://\1:…@", url)
