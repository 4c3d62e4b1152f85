"""A worker of a sweep: takes trials until none is left, and records how each ended."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from jaxtune.config.fields import ConfigError
from jaxtune.config.schema import Config
from jaxtune.display.errors import UserError
from jaxtune.display.escapes import plural
from jaxtune.display.progress import Progress, duration
from jaxtune.runs.ends import Unrecorded
from jaxtune.runs.loop import Report
from jaxtune.runs.sweep import board, publish
from jaxtune.runs.sweep.executor import Executor, Outcome, Trial
from jaxtune.runs.sweep.leases import Lease, Leases
from jaxtune.runs.sweep.space import Overrides, text
from jaxtune.runs.sweep.study import REASON, SECONDS, STEPS, Study
from jaxtune.runs.sweep.variants import overridden
from jaxtune.runs.sweep.winner import write_config
from jaxtune.workdir.directory import claim

PAUSE = 1.0  # seconds between two looks at trials that other workers run
BEATS = 6  # signs of life in the time after which a worker counts as dead

Objective = Callable[[Path], float]  # from the directory of a finished trial; lower is better


class TakenOver(UserError):
    """A trial that another worker has taken over, since this one gave no sign of life."""


@dataclass(eq=False)
class Work:
    """The work of this process on a sweep.

    Attributes:
      study: The study.
      leases: Claims of its trials.
      executor: Runs trials.
      workdir: Directory of the sweep.
      progress: Display for trials that end.
      patience: Seconds without a sign of life after which other workers count as dead.
      objective: Computes the metric of a finished trial; by default it is an evaluation's.
    """

    study: Study
    leases: Leases
    executor: Executor
    workdir: Path
    progress: Progress
    patience: float
    objective: Objective | None = None
    _begun: float = field(default_factory=time.monotonic)
    _ended: int = 0  # trials that ended here

    def run(self) -> None:
        """Runs trials until every trial of the study has ended, here or elsewhere."""
        while open_trials := [each for each in self.study.trials if not each.state.is_finished()]:
            with contextlib.ExitStack() as stack:
                taken = list(self._taken(open_trials, stack))
                if taken:
                    self._run(taken)
                    continue
            count = plural(len(open_trials), "trial")
            self.progress.draw(f"waiting for {count} that other workers run")
            time.sleep(PAUSE)

    def _taken(
        self, trials: Sequence[FrozenTrial], stack: contextlib.ExitStack
    ) -> Iterator[tuple[Trial, Lease]]:
        """Claims as many trials as the executor takes at once; the stack gives them back.

        They are no more than this worker's share of the trials that have not ended.
        """
        left = min(self.executor.most, -(-len(trials) // (1 + self.leases.others())))
        for known in trials:
            if not left:
                return
            lease = self.leases.take(known.number)
            if lease is None:
                continue
            stack.callback(lease.end)
            if self.study.trial(known.number).state.is_finished():
                continue  # it ended between the look at the study and the claim
            stack.enter_context(lease.beating(self.patience / BEATS))
            left -= 1
            yield self._trial(known.number, lease), lease

    def _trial(self, number: int, lease: Lease) -> Trial:
        """Returns a trial that is ready to run, its directory and config file written."""
        overrides = self.study.begin(number)
        directory = self.workdir / board.directory(number)
        title = f"trial {number} of {self.study.count} ({text(overrides)})"
        claim(directory)
        config = self._config(overrides)
        if not isinstance(config, ConfigError):
            about = f"Trial {number} of the sweep {self.workdir.resolve().name}."
            write_config(directory / "config.py", config, about)
        return Trial(number, config, directory, title, self._report(number, lease))

    def _config(self, overrides: Overrides) -> Config | ConfigError:
        try:
            return overridden(self.study.spec.config, overrides)
        except ConfigError as error:
            return error

    def _report(self, number: int, lease: Lease) -> Report:
        """Returns the function that records evaluations of a trial and asks the pruner."""
        metric = self.study.spec.metric

        def recorded(step: int, values: Mapping[str, float]) -> bool:
            if not lease.valid:
                raise TakenOver(f"trial {number} was taken over by another worker")
            value = values.get(metric)
            if self.objective or value is None or not math.isfinite(value):
                return False
            return self.study.report(number, step, value)

        def report(step: int, values: Mapping[str, float]) -> bool:
            try:
                return recorded(step, values)
            except UserError:
                raise
            except Exception as error:  # of whatever kind the storage raises
                raise Unrecorded(
                    f"trial {number}: the study did not record step {step:,} ({error}); run the "
                    "same command again to resume the trial from its last checkpoint"
                ) from error

        return report

    def _run(self, taken: Sequence[tuple[Trial, Lease]]) -> None:
        leases = {trial.number: lease for trial, lease in taken}
        for outcome in self.executor.run([trial for trial, _ in taken]):
            if leases[outcome.trial.number].valid:
                self._record(outcome)
                publish.write(self.study, self.workdir)

    def _record(self, outcome: Outcome) -> None:
        """Records the outcome of a trial, and prints it."""
        number, state, value = outcome.trial.number, outcome.state, None
        reason = outcome.reason
        if state == "complete":
            value, reason = self._value(outcome.trial)
            state = "complete" if value is not None else "failed"
        known = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED}
        about = {STEPS: outcome.steps, SECONDS: outcome.seconds} | (
            {REASON: reason} if reason else {}
        )
        self.study.end(number, known.get(state, TrialState.FAIL), value, **about)
        self._ended += 1
        self.progress.say(self._line(outcome, state, value, reason))

    def _value(self, trial: Trial) -> tuple[float | None, str]:
        """Returns the metric of a trial that is complete, or None and the reason."""
        spec = self.study.spec
        if self.objective:
            try:
                value = float(self.objective(trial.directory))
            except Exception as error:
                return None, f"objective: {type(error).__name__}: {error}"
            return (value, "") if math.isfinite(value) else (None, f"objective: it is {value}")
        value = board.reached(self.study.trial(trial.number), spec)
        return value, "" if value is not None else f"no evaluation gave a value of {spec.metric}"

    def _line(self, outcome: Outcome, state: str, value: float | None, reason: str) -> str:
        spec = self.study.spec
        result = f" {spec.metric} {value:.4g}" if value is not None else ""
        after = f" after {plural(outcome.steps, 'step')}" if outcome.steps else ""
        told = f": {reason.splitlines()[0]}" if reason else ""
        left = sum(not each.state.is_finished() for each in self.study.trials)
        time_left = duration(left * (time.monotonic() - self._begun) / self._ended)
        return (
            f"{outcome.trial.title}: {state}{result}{after} in "
            f"{duration(outcome.seconds)}{told}; {left} left, about {time_left} for one worker"
        )
