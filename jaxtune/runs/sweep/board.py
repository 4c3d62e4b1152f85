"""The leaderboard of a sweep: its trials, best first."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial

from jaxtune.display.columns import grid
from jaxtune.display.progress import duration
from jaxtune.runs.sweep.space import Overrides, text
from jaxtune.runs.sweep.spec import Spec
from jaxtune.runs.sweep.study import OVERRIDES, POINTS, REASON, SECONDS, STATES, STEPS, Study

ORDER = ("complete", "pruned", "running", "waiting", "failed")  # of states in the leaderboard
SHOWN = 10  # rows that the terminal shows


@dataclass(frozen=True)
class Entry:
    """A row of the leaderboard.

    Attributes:
      number: Number of the trial.
      overrides: Values of the keys that vary; empty if they are not drawn yet.
      directory: Run directory, relative to that of the sweep.
      state: One of `ORDER`.
      metric: Value of the sweep's metric: of the best evaluation, or of the last one if the config
        keeps no best checkpoint. None if there is none yet.
      steps: Steps that it did.
      seconds: Seconds of training.
      reason: Why it failed.
      curve: The metric after each evaluated step.
    """

    number: int
    overrides: Overrides
    directory: str
    state: str
    metric: float | None
    steps: int
    seconds: float
    reason: str
    curve: tuple[tuple[int, float], ...]

    @property
    def content(self) -> dict[str, Any]:
        """The entry as JSON."""
        names = ("number", "overrides", "directory", "state", "metric", "steps", "seconds")
        found = {name: getattr(self, name) for name in names}
        return found | ({"reason": self.reason} if self.reason else {})


def directory(number: int) -> str:
    """Returns the run directory of a trial, relative to that of the sweep."""
    return f"trials/{number:04}"


def reached(trial: FrozenTrial, spec: Spec) -> float | None:
    """Returns the metric of a trial so far: the best one, or the last if no best one is kept."""
    reports = trial.intermediate_values
    if not reports:
        return None
    if not spec.config.checkpoint.best:
        return reports[max(reports)]
    return (max if spec.higher else min)(reports.values())


def entries(study: Study) -> list[Entry]:
    """Returns the trials of a study, best first."""
    points = study.study.user_attrs.get(POINTS, {})
    found = [_entry(trial, study.spec, points) for trial in study.trials]
    sign = -1 if study.spec.higher else 1

    def rank(entry: Entry) -> tuple:
        value = math.inf if entry.metric is None else sign * entry.metric
        return ORDER.index(entry.state), value, entry.number

    return sorted(found, key=rank)


def table(spec: Spec, found: Sequence[Entry]) -> list[str]:
    """Returns the first rows of the leaderboard as text."""
    rows = [
        {
            "trial": str(each.number),
            "state": each.state,
            spec.metric: "" if each.metric is None else f"{each.metric:.5g}",
            "steps": f"{each.steps:,}" if each.steps else "",
            "time": duration(each.seconds) if each.seconds else "",
            "overrides": text(each.overrides),
        }
        for each in found[:SHOWN]
    ]
    more = len(found) - SHOWN
    columns = ["trial", "state", spec.metric, "steps", "time", "overrides"]
    lines = grid(columns, rows, ["trial", spec.metric, "steps", "time"])
    return lines + ([f"and {more:,} more"] if more > 0 else [])


def _entry(trial: FrozenTrial, spec: Spec, points: Any) -> Entry:
    attributes, number = trial.user_attrs, trial.number
    overrides = attributes.get(OVERRIDES) or (points[number] if points else {})
    value = trial.value if trial.values else reached(trial, spec)
    curve = tuple(sorted(trial.intermediate_values.items()))
    return Entry(
        number,
        dict(overrides),
        directory(number),
        STATES[trial.state],
        value,
        attributes.get(STEPS, curve[-1][0] if curve else 0),
        attributes.get(SECONDS, 0.0),
        attributes.get(REASON, ""),
        curve,
    )
