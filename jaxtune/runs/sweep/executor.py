"""Runs the trials that a worker has claimed, and returns how each ended.

`OneByOne` runs each as a run of its own, and `Populations` trains those that share their programs
together.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import jax
from jax.sharding import Mesh

from jaxtune.assembly import weights
from jaxtune.config.schema import Config
from jaxtune.config.training_sections import Model as Base
from jaxtune.display.errors import UserError
from jaxtune.display.progress import Progress
from jaxtune.files import UnwritableError
from jaxtune.models import host
from jaxtune.models.paligemma import Model
from jaxtune.runs.ends import Pruned, Unrecorded
from jaxtune.runs.loop import Report
from jaxtune.runs.run import fit
from jaxtune.runs.sweep.variants import program_of, shares_base

T = TypeVar("T")
OUTPUT = "output.log"  # in the directory of a trial: what its run reports


@dataclass(frozen=True)
class Trial:
    """A trial that is about to run.

    Attributes:
      number: Its number in the study.
      config: Its config, or the error of overrides that cannot be combined.
      directory: Its run directory.
      title: Its number and overrides on one line.
      report: Receives the values of each evaluation, and returns whether the trial is pruned.
    """

    number: int
    config: Config | UserError
    directory: Path
    title: str
    report: Report


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: complete, pruned or failed, with the reason.

    Attributes:
      trial: The trial.
      state: "complete", "pruned" or "failed".
      steps: Steps that it did.
      seconds: Seconds of training, those before a resume included.
      reason: Why it failed.
    """

    trial: Trial
    state: str
    steps: int = 0
    seconds: float = 0.0
    reason: str = ""


class Executor(Protocol):
    """Trains the trials that a worker has claimed, and tells how each ended."""

    most: int  # trials that it takes at once

    def run(self, trials: Sequence[Trial]) -> Iterator[Outcome]:
        """Runs trials and yields their outcomes.

        Errors of one trial are its outcome; those of the machine, such as a full disk, are raised.
        """


@dataclass
class OneByOne:
    """Runs each trial as a run of its own, on a base that trials share where none changes it."""

    progress: Progress
    most: int = 1
    base: "KeptBase" = field(default_factory=lambda: KeptBase())
    _planned: set[Config] = field(default_factory=set)

    def run(self, trials: Sequence[Trial]) -> Iterator[Outcome]:
        """Runs trials one after another; see `Executor`."""
        for trial in trials:
            yield self._outcome(trial)

    def _outcome(self, trial: Trial) -> Outcome:
        begun = time.monotonic()
        summary, error = attempt(partial(self._fit, trial))
        if error:
            return ended(trial, error, time.monotonic() - begun)
        return Outcome(trial, "complete", summary["steps"], summary["seconds"])

    def _fit(self, trial: Trial) -> dict[str, Any]:
        """Runs or resumes a trial, and returns its summary."""
        config = trial.config
        if isinstance(config, UserError):
            raise config
        shared = shares_base(config)
        if not shared:
            self.base.drop()
        program = program_of(config)
        summary = fit(
            config,
            trial.directory,
            plan=program not in self._planned,
            progress=TrialProgress(self.progress, trial),
            report=trial.report,
            load_base=self.base if shared else weights.load_base,
            cache=trial.directory.parent,
        )
        self._planned.add(program)
        return summary


def attempt(action: Callable[[], T]) -> tuple[T, None] | tuple[None, Exception]:
    """Returns the result of an action, or the error of a trial that it raised.

    Errors of the machine, such as a full disk, are raised.
    """
    try:
        return action(), None
    except (UnwritableError, Unrecorded, OSError):
        raise
    except Exception as error:
        return None, error


def ended(trial: Trial, error: Exception, seconds: float) -> Outcome:
    """Returns the outcome of a trial that an error ended, `seconds` after it began."""
    if isinstance(error, Pruned):
        return Outcome(trial, "pruned", error.step, round(error.seconds, 1))
    reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return Outcome(trial, "failed", 0, round(seconds, 1), reason)


class KeptBase:
    """Loads bases, and keeps the last one for runs that want the same and do not change it."""

    def __init__(self):
        self._key: tuple | None = None
        self._loaded: tuple[Model, dict] | None = None

    def __call__(self, given: Base, checkpoint: Path, mesh: Mesh) -> tuple[Model, dict]:
        """Returns what `weights.load_base` returns, from memory where it can."""
        key = (given, checkpoint, mesh)
        if self._loaded is None or key != self._key:
            self.drop()  # before another is loaded, since both may not fit
            model, variables = weights.load_base(given, checkpoint, mesh)
            if given.embedding == "host":  # or else what is kept would stay on the devices
                variables = host.moved(variables)
            self._loaded, self._key = (model, variables), key
        model, variables = self._loaded
        return model, jax.tree.map(lambda leaf: leaf, variables)

    def drop(self) -> None:
        """Forgets the kept base, so that its memory is free for another."""
        self._key = self._loaded = None


class TrialProgress(Progress):
    """Shows the status line of a trial's run, and keeps its texts in a file of the trial."""

    def __init__(self, shown: Progress, trial: Trial):
        self._shown, self._trial = shown, trial
        self.verbose = False

    @property
    def live(self) -> bool:
        """Whether the output is a terminal."""
        return self._shown.live

    def draw(self, text: str) -> None:
        """Redraws the status line, which begins with the trial."""
        self._shown.draw(f"{self._trial.title}: {text}")

    def say(self, text: str = "") -> None:
        """Adds a text to the trial's output.log."""
        with (self._trial.directory / OUTPUT).open("a", encoding="utf-8") as file:
            file.write(text + "\n")
