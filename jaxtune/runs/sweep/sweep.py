"""Runs a sweep: opens its study, works on its trials, and writes the leaderboard."""

import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import filelock
import jax

from jaxtune.config.load import config_of
from jaxtune.config.schema import Config
from jaxtune.display.progress import Progress
from jaxtune.files import read_json, write_json
from jaxtune.runs.sweep.spec import LOSS, TOGETHER, Spec, SweepError, refuse_remote
from jaxtune.runs.sweep.storage import JOURNAL, opened, required
from jaxtune.workdir.directory import claim, refuse_foreign

SWEEP = "sweep.json"  # in the workdir: what the sweep is, and the name of the directory
PATIENCE = 60.0


def sweep(
    config: Config | Mapping[str, Any] | str | os.PathLike,
    space: Mapping[str, Any],
    objective: str | Callable[[Path], float] = LOSS,
    *,
    workdir: str | os.PathLike = "runs/sweep",
    trials: int | None = None,
    sampler: str | None = None,
    pruner: str | None = None,
    seed: int = 0,
    storage: str | None = None,
    study: str | None = None,
    extend: bool = False,
    together: int = TOGETHER,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Trains a config with many overrides, and returns the leaderboard, best trial first.

    A sweep that was interrupted goes on; several processes may work on one.

    Args:
      config: Config of every trial: a `Config`, nested dictionaries, or the path of a config file.
      space: Lists or ranges of values by config key, such as `{"optim.lr": log(1e-5, 1e-2)}`.
      objective: "loss" for the held-out loss, a metric of answers, or a function that computes what
        to minimise from the run directory of a finished trial.
      workdir: Directory of the sweep; trials are run directories in it.
      trials: Number of trials; required unless the sampler is "grid".
      sampler: "grid", "random", "tpe", "qmc", "gp", "cmaes" or "nsga2"; by default "tpe" if the
        space has a range, and otherwise "grid".
      pruner: "median", "halving" or "hyperband", or None to run every trial to its end.
      seed: Seed of the sampler.
      storage: URL of a database, for workers on several machines; by default a file in `workdir`.
      study: Name of the study in the storage; by default that of `workdir`.
      extend: Adds these trials to a study of another space.
      together: Most trials that train together as a population; 1 trains each by itself.
      progress: Where trials are reported; standard output by default.

    Returns:
      The entries of leaderboard.json.

    Raises:
      SweepError: If the sweep is invalid, or none of its trials was completed.
      Stopped: If a signal stopped the sweep; it can be resumed.
    """
    refuse_remote(workdir)
    own = None if isinstance(objective, str) else objective
    given = dict(space=space, trials=trials, sampler=sampler, pruner=pruner, seed=seed)
    metric = getattr(objective, "__name__", "objective") if own else objective
    spec = Spec.of(config_of(config), given | {"metric": metric}, own_metric=own is not None)
    place = Path(workdir).expanduser()
    return run(
        spec,
        place,
        storage=storage,
        name=study,
        extend=extend,
        together=together,
        objective=own,
        progress=progress or Progress(),
    )


def run(
    spec: Spec,
    workdir: Path,
    *,
    progress: Progress,
    storage: str | None = None,
    name: str | None = None,
    extend: bool = False,
    together: int = TOGETHER,
    patience: float = PATIENCE,
    objective: Callable[[Path], float] | None = None,
) -> list[dict[str, Any]]:
    """Works on the trials of a sweep until all have ended; see `sweep`.

    `patience` is the number of seconds without a sign of life after which a worker on another
    machine counts as dead.
    """
    if jax.process_count() > 1:
        raise SweepError("a trial runs in a single process: start the workers of a sweep apart")
    required(spec.sampler)
    from jaxtune.runs.sweep import board, publish
    from jaxtune.runs.sweep.leases import Leases, working
    from jaxtune.runs.sweep.populations import Populations
    from jaxtune.runs.sweep.study import Study
    from jaxtune.runs.sweep.worker import Work

    refuse_foreign(workdir)
    name = name or workdir.resolve().name
    if storage is None or storage.startswith("sqlite"):  # a file that may be in the workdir
        claim(workdir)
    with opened(storage, workdir) as held:
        claim(workdir)
        study = Study.of(spec, held, name, extend)
        with working(workdir, _place(workdir, spec, name, storage)) as worker:
            leases = Leases(held, name, worker, workdir, patience)
            executor = Populations(progress, most=together)
            Work(study, leases, executor, workdir, progress, patience, objective).run()
        found = publish.write(study, workdir)
    for line in ["", *board.table(spec, found), ""]:
        progress.say(line)
    if found[0].state != "complete":
        failed = [each for each in found if each.state == "failed"]
        reason = f"; trial {failed[0].number}: {failed[0].reason}" if failed else ""
        raise SweepError(f"no trial of the sweep in {workdir} was completed{reason}")
    _tell_best(spec, workdir, found[0].directory, progress)
    return [each.content for each in found]


def _place(workdir: Path, spec: Spec, name: str, storage: str | None) -> str:
    """Writes sweep.json, and returns the name of the workdir, which workers on it share.

    Raises SweepError if the trials in the workdir belong to another study.
    """
    file = workdir / SWEEP
    study = {"study": name, "storage": _database(storage)}
    with filelock.FileLock(workdir / f".{SWEEP}.lock"):
        try:
            known = read_json(file, {"place": str, "study": str, "storage": str})
        except FileNotFoundError:
            known = {"place": secrets.token_hex(8), **study}
        if {key: known[key] for key in study} != study:
            raise SweepError(
                f"the trials in {workdir} belong to the study {known['study']} in "
                f"{known['storage']}, not to {name} in {study['storage']}; name another --workdir"
            )
        about = spec.described | {"higher": spec.higher}
        write_json(file, {"place": known["place"], **study, **about})
    return known["place"]


def _database(storage: str | None) -> str:
    """Returns the name of a database, without the host, which machines may call by other names."""
    return storage.partition("?")[0].rpartition("/")[2] if storage else JOURNAL


def _tell_best(spec: Spec, workdir: Path, directory: str, progress: Progress) -> None:
    """Prints where the best trial's config and export are, and whether the export is verified."""
    from jaxtune.runs.sweep.winner import BEST

    summary = read_json(workdir / directory / "summary.json", {"exported": str, "verified?": bool})
    verified = ", verified" if summary.get("verified") else ""
    progress.say(f"best config   {workdir / BEST}")
    progress.say(f"best export   {summary['exported']}{verified}")
    progress.say(f"leaderboard   {workdir / 'leaderboard.html'}")
