"""Sweeps whose trials train nothing: their executor computes a loss from the overrides."""

import contextlib
import math
from pathlib import Path

from jaxtune.config import load as configs
from jaxtune.display.progress import Quiet
from jaxtune.runs.sweep import publish
from jaxtune.runs.sweep.executor import Outcome
from jaxtune.runs.sweep.leases import Leases, working
from jaxtune.runs.sweep.spec import Spec
from jaxtune.runs.sweep.storage import opened
from jaxtune.runs.sweep.study import Study
from jaxtune.runs.sweep.worker import Work

GRID = {"optim.lr": [0.001, 0.01, 0.1], "seed": [0, 1]}


def config(**changes):
    values = {
        "model": {"path": "base"},
        "data": {"source": "rows.jsonl"},
        "eval": {"holdout": 8, "every": 5},
        "steps": 20,
    }
    return configs.parse({**values, **changes})


def spec(space=None, base=None, **more) -> Spec:
    return Spec.of(base or config(), {"space": space or GRID, **more})


class Sums:
    """Reports a loss four times; it falls, and depends on the learning rate and the seed alone."""

    def __init__(self, most: int = 1, before=lambda trial: None):
        self.most, self.before, self.ran, self.taken = most, before, [], []

    def run(self, trials):
        self.taken.append(len(trials))
        for trial in trials:
            self.before(trial)
            self.ran.append(trial.number)
            yield self.outcome(trial)

    def outcome(self, trial):
        if isinstance(trial.config, Exception):
            return Outcome(trial, "failed", reason=str(trial.config))
        best = abs(math.log10(trial.config.optim.lr) + 2) + trial.config.seed / 10
        for step in (5, 10, 15, 20):
            ended = trial.report(step, {"loss": best + 1 / step, "exact": 1 / (1 + best)})
            if ended and step < 20:
                return Outcome(trial, "pruned", step, 1.0)
        return Outcome(trial, "complete", 20, 2.0)


@contextlib.contextmanager
def work(wanted: Spec, workdir: Path, executor, *, place="here", name="study", **more):
    """A worker that is ready to run, with its study."""
    storage, extend = more.pop("storage", None), more.pop("extend", False)
    workdir.mkdir(exist_ok=True)
    with opened(storage, workdir) as held, working(workdir, place) as worker:
        study = Study.of(wanted, held, name, extend)
        leases = Leases(held, name, worker, workdir, 1.0)
        yield Work(study, leases, executor, workdir, Quiet(), 1.0, **more)


def finish(wanted: Spec, workdir: Path, executor=None, **more) -> list:
    """Runs a sweep to its end, and returns its leaderboard."""
    with work(wanted, workdir, executor or Sums(), **more) as found:
        found.run()
        return publish.write(found.study, workdir)
