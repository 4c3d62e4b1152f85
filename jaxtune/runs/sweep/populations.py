"""Trains the trials that share their programs together, as populations."""

import contextlib
import datetime
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import jax

from jaxtune.assembly.assemble import Assembly
from jaxtune.config.schema import Config
from jaxtune.display.errors import UserError
from jaxtune.display.escapes import plural
from jaxtune.display.progress import Progress, Quiet
from jaxtune.runs.ends import RESUME
from jaxtune.runs.loop import Run
from jaxtune.runs.plan.members import Members, members
from jaxtune.runs.plan.targets import at_hand
from jaxtune.runs.rows import RunRows
from jaxtune.runs.run import opened
from jaxtune.runs.signals import stopping
from jaxtune.runs.sweep.executor import OneByOne, Outcome, Trial, TrialProgress, attempt, ended
from jaxtune.runs.sweep.variants import Group, groups, together_as
from jaxtune.runs.together import Together

ALONE = Members(1, 0, 0.0)


@dataclass
class Populations:
    """Trains trials together where they share base and programs, and one by one where not.

    Attributes:
      progress: Where trials are reported.
      most: Trials that it takes at once.
    """

    progress: Progress
    most: int
    _alone: OneByOne = field(init=False)
    _known: dict[tuple, Members] = field(default_factory=dict)  # how many of a kind fit

    def __post_init__(self):
        self._alone = OneByOne(self.progress)

    def run(self, trials: Sequence[Trial]) -> Iterator[Outcome]:
        """Runs trials; see `Executor`."""
        valid = [trial for trial in trials if isinstance(trial.config, Config)]
        yield from self._alone.run([trial for trial in trials if trial not in valid])
        for group in groups([trial.config for trial in valid], self.most > 1):
            several = [valid[number] for number in group.trials]
            members = self._members(group, several[0].directory.parent)
            parts = -(-len(several) // members.count)
            for part in range(parts):
                yield from self._population(several[part::parts], members.seconds)

    def _members(self, group: Group, cache: Path) -> Members:
        """Returns how many trials of a group fit the devices at once."""
        if not group.together:
            return ALONE
        rank = group.config.trainable.rank
        key = (together_as(group.config), rank, group.seeds, len(group.trials))
        if key not in self._known:
            self.progress.draw(f"planning {len(group.trials)} trials together")
            try:
                self._known[key] = fitting(group.config, len(group.trials), group.seeds, cache)
            except UserError:  # such as rows that cannot be read, which each run says by itself
                return ALONE
        return self._known[key]

    def _population(self, trials: Sequence[Trial], compiling: float) -> Iterator[Outcome]:
        """Trains trials together, or one alone; see `Together` for `compiling`."""
        if len(trials) == 1:
            yield from self._alone.run(trials)
            return
        left = list(trials)
        with contextlib.ExitStack() as stack:
            try:
                for outcome in self._together(trials, compiling, stack):
                    left.remove(outcome.trial)
                    yield outcome
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
        if left:
            several = plural(len(left), "trial")
            self.progress.say(f"memory does not suffice for {several} together: they go on alone")
            yield from self._alone.run(left)

    def _together(
        self, trials: Sequence[Trial], compiling: float, stack: contextlib.ExitStack
    ) -> Iterator[Outcome]:
        """Opens the runs of trials, trains them together, and finishes each."""
        begun, board = time.monotonic(), Board(self.progress)
        stop = stack.enter_context(stopping(RESUME))
        runs: dict[Run, Trial] = {}
        for trial in trials:
            self.progress.draw(f"opening {trial.title}")
            run, error = attempt(partial(self._opened, trial, board, stack))
            if error:
                yield ended(trial, error, time.monotonic() - begun)
            else:
                runs[run] = trial
        for run, error in Together(list(runs), compiling).train(stop) if runs else ():
            yield ended(runs.pop(run), error, time.monotonic() - begun)
        for run, trial in runs.items():
            summary, error = attempt(partial(run.finish, stop))
            if error:
                yield ended(trial, error, time.monotonic() - begun)
            else:
                yield Outcome(trial, "complete", summary["steps"], summary["seconds"])

    def _opened(self, trial: Trial, board: "Board", stack: contextlib.ExitStack) -> Run:
        """Opens the run of a trial, which the stack closes."""
        run = opened(
            trial.config,
            trial.directory,
            plan=False,
            progress=board.of(trial),
            report=trial.report,
            load_base=self._alone.base,
            cache=trial.directory.parent,
        )
        return stack.enter_context(run)


def fitting(config: Config, most: int, own: bool, cache: Path) -> Members:
    """Returns how many runs like that of a config fit the devices of this machine at once.

    Args:
      config: The config, of those that are to train together the one with the highest rank.
      most: Highest number of members.
      own: Whether each member has batches of its own.
      cache: Directory that keeps what was found of the rows.
    """
    target, today = at_hand(), datetime.date.today().isoformat()
    assembly = Assembly.of_headers(config, today, tuple(target.devices()))
    with contextlib.ExitStack() as stack:
        rows = RunRows.read(assembly, Quiet(), stack, cache)
        return members(assembly, rows, target, most, own)


class Board:
    """The status lines of trials under way, drawn below each other."""

    def __init__(self, progress: Progress):
        self._progress, self._lines = progress, {}

    def of(self, trial: Trial) -> Progress:
        """Returns the progress of a trial, whose status is a line of the board."""
        return _Line(self._progress, trial, partial(self._draw, trial))

    def _draw(self, trial: Trial, text: str) -> None:
        self._lines[trial.number] = text
        self._progress.draw(*self._lines.values())


class _Line(TrialProgress):
    """Progress of a trial that is drawn as a line of a board."""

    def __init__(self, shown: Progress, trial: Trial, drawn: Callable[[str], None]):
        super().__init__(shown, trial)
        self._drawn = drawn

    def draw(self, text: str) -> None:
        """Redraws the trial's line."""
        self._drawn(f"{self._trial.title}: {text}")
