"""Leases of trials: which worker runs a trial, and whether that worker is still alive.

A claim of a trial is an entry of a second study. Optuna gives its entries ascending numbers, no two
of which are equal, in every storage: of the claims that replace the same former claim, the one with
the lowest number holds. So two workers never run one trial, however they race for it.
"""

import contextlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import optuna
from optuna.trial import FrozenTrial, TrialState

from jaxtune.files import UnwritableError

WORKERS = "workers"  # folder of the workdir, with a file per worker, locked while it lives


@dataclass(frozen=True)
class Worker:
    """A process that runs trials.

    Attributes:
      name: Unique name, which is also that of its file under `workers/`.
      host: Name of its machine.
      place: Name of the workdir; workers that share a directory have the same.
    """

    name: str
    host: str
    place: str


@contextlib.contextmanager
def working(workdir: Path, place: str) -> Iterator[Worker]:
    """Registers this process as a worker, whose file stays locked until the process ends."""
    host = socket.gethostname()
    worker = Worker(f"{host}-{os.getpid()}-{secrets.token_hex(3)}", host, place)
    file = workdir / WORKERS / worker.name
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(file, timeout=0)
        lock.acquire()
    except OSError as error:
        raise UnwritableError(file, error) from None
    try:
        yield worker
    finally:
        lock.release()
        file.unlink(missing_ok=True)


class Leases:
    """The claims of a study's trials."""

    def __init__(
        self,
        storage: optuna.storages.BaseStorage,
        study: str,
        worker: Worker,
        workdir: Path,
        patience: float,
    ):
        """Opens the claims of a study, and makes them in its storage if they are missing.

        Args:
          storage: Optuna's storage.
          study: Name of the study whose trials are claimed.
          worker: This worker.
          workdir: Directory of the sweep.
          patience: Seconds without a sign of life after which a worker elsewhere counts as dead.
        """
        self._storage, self._worker, self._workdir = storage, worker, workdir
        self._patience = patience
        name = f"{study}/claims"
        optuna.create_study(storage=storage, study_name=name, load_if_exists=True)
        self._study = storage.get_study_id_from_name(name)
        self._beats: dict[int, tuple[Any, float]] = {}  # last beat of a claim, and when it was new

    def take(self, trial: int) -> "Lease | None":
        """Claims a trial; returns None if a living worker has it, or another was quicker."""
        former = self._holder(trial, self._claims())
        if former is not None and self._alive(former):
            return None
        after = None if former is None else former.number
        about = {**vars(self._worker), "trial": trial, "after": after}
        mine = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs=about)
        claim = self._storage.create_new_trial(self._study, mine)
        lease = Lease(self, trial, claim, self._storage.get_trial(claim).number)
        return lease if self.holds(lease) else None

    def holds(self, lease: "Lease") -> bool:
        """Returns whether a lease is still valid: no other worker has taken the trial over."""
        holder = self._holder(lease.trial, self._claims())
        return holder is not None and holder.number == lease.number

    def held(self, trial: int) -> bool:
        """Returns whether a living worker has a trial."""
        holder = self._holder(trial, self._claims())
        return holder is not None and self._alive(holder)

    def others(self) -> int:
        """Returns how many other workers live: those on this workdir, and holders of trials."""
        files = (self._workdir / WORKERS).iterdir()
        alive = {file.name for file in files if self._locked(file.name)}
        alive |= {claim.user_attrs["name"] for claim in self._claims() if self._alive(claim)}
        return len(alive - {self._worker.name})

    def beat(self, lease: "Lease") -> None:
        """Gives a sign of life."""
        self._storage.set_trial_user_attr(lease.claim, "beat", time.time())

    def end(self, lease: "Lease") -> None:
        """Gives a trial back, or marks it as no longer needed."""
        self._storage.set_trial_state_values(lease.claim, TrialState.COMPLETE, [0.0])

    def _claims(self) -> list[FrozenTrial]:
        found = self._storage.get_all_trials(self._study, deepcopy=False)
        return sorted(found, key=lambda claim: claim.number)

    def _holder(self, trial: int, claims: list[FrozenTrial]) -> FrozenTrial | None:
        """Returns the valid claim of a trial: the last in its chain of replaced claims."""
        first: dict[int | None, FrozenTrial] = {}
        for claim in claims:
            if claim.user_attrs["trial"] == trial:
                first.setdefault(claim.user_attrs["after"], claim)
        holder = first.get(None)
        while holder is not None and holder.number in first:
            holder = first[holder.number]
        return holder

    def _alive(self, claim: FrozenTrial) -> bool:
        """Returns whether the worker of a claim still runs the trial.

        The lock of a worker's file tells at once, but only on its own machine: file systems that
        machines share may not share locks. Of other machines, the beats are waited for, too.
        """
        if claim.state.is_finished():
            return False
        about = claim.user_attrs
        shared = about["place"] == self._worker.place
        if shared and self._locked(about["name"]):
            return True
        return not (shared and about["host"] == self._worker.host) and self._beats_on(claim)

    def _locked(self, name: str) -> bool:
        file = self._workdir / WORKERS / name
        if not file.exists():
            return False
        lock = filelock.FileLock(file, timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout:
            return True
        lock.release()
        return False

    def _beats_on(self, claim: FrozenTrial) -> bool:
        """Returns whether a claim has had a new beat lately, by the clock of this machine."""
        beat, now = claim.user_attrs.get("beat"), time.monotonic()
        known, since = self._beats.get(claim.number, (self, now))
        if known != beat:
            since = now
        self._beats[claim.number] = (beat, since)
        return now - since < self._patience


@dataclass(frozen=True)
class Lease:
    """A valid claim of this worker.

    Attributes:
      trial: Number of the trial.
      claim: Optuna's id of the claim.
      number: Number of the claim.
    """

    leases: Leases
    trial: int
    claim: int
    number: int

    @contextlib.contextmanager
    def beating(self, every: float) -> Iterator[None]:
        """Gives a sign of life every so many seconds during the block, from a thread."""
        done = threading.Event()

        def beat() -> None:
            while not done.wait(every):
                with contextlib.suppress(Exception):  # a database may be away for a while
                    self.leases.beat(self)

        thread = threading.Thread(target=beat, name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    @property
    def valid(self) -> bool:
        """Whether no other worker has taken the trial over."""
        return self.leases.holds(self)

    def end(self) -> None:
        """Gives the trial back, or marks it as no longer needed."""
        self.leases.end(self)
