"""Trains several runs together, as one population over the base that they share.

Each run keeps its directory, its log and its checkpoints: a run that was trained together with
others can be resumed by itself, and the other way round.
"""

import signal
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TypeVar

import jax

from jaxtune.data import batches
from jaxtune.data.batches import Batch
from jaxtune.data.loader import Step
from jaxtune.display.escapes import plural
from jaxtune.evaluation.held_out import Sums
from jaxtune.files import UnwritableError
from jaxtune.runs.ends import FIRST, RESUME, Interrupted, Unrecorded
from jaxtune.runs.loop import Run
from jaxtune.runs.signals import Stop, Stopped
from jaxtune.training.population import Population, population_step, population_sums

T = TypeVar("T")
# Yields runs that ended before their last step, and why, and returns what it is for.
Ends = Generator[tuple[Run, Exception], None, T]


@dataclass
class Together:
    """Runs that train together.

    Attributes:
      runs: The runs. They differ in numbers that their train states hold, and share the arrays of
        their base. Those that are behind, as a killed process leaves them, catch up first.
      compiling: Seconds that it takes to compile the step for fewer members. Runs that ended are
        computed on where leaving them out would save less than that.
    """

    runs: Sequence[Run]
    compiling: float
    _ended: set[Run] = field(default_factory=set)  # before their last step

    def train(self, stop: Stop) -> Ends[None]:
        """Runs all remaining steps, and yields each run that ends before its last one, and why.

        The others are then ready for `Run.finish`. On a signal, all runs are saved, and `Stopped`
        is raised, as is a failure that is no run's own, such as a full disk.
        """
        yield from self._begin()
        while left := [run for run in self.runs if run not in self._ended and not run.over]:
            done = min(run.done for run in left)
            until = min((run.done for run in left if run.done > done), default=None)
            yield from self._leg([run for run in left if run.done == done], until, stop)

    def _begin(self) -> Ends[None]:
        """Evaluates the untrained weights of runs that begin, and what a signal broke off."""
        first = [run for run in self.runs if run.evaluates_first]
        if first:
            losses = _losses(first[0], Population.of([run.state for run in first]))
        for run in self.runs:
            means = partial(losses.means, first.index(run)) if run in first else None
            yield from self._attempt(run, partial(run.begin, means))

    def _leg(self, runs: Sequence[Run], until: int | None, stop: Stop) -> Ends[None]:
        """Runs the steps of runs that have done equally many, until they have done `until`."""
        leg, done, ahead = Leg(runs), runs[0].done, None
        while leg.runs and done != until:
            taken = leg.step()
            # The devices compute this step while the host reads the metrics of the previous one.
            yield from self._settle(leg, ahead)
            ahead, done = taken, done + 1
            stop.after(FIRST, RESUME)
            asked = stop.asked
            if asked or done == until or any(run.due for run in leg.runs.values()):
                yield from self._settle(leg, ahead)
                ahead = None
                asked = yield from self._pause(leg, asked, stop, keep=done == until)
                leg.leave_out(self.compiling)
            if asked:
                self._leave(asked, done)

    def _settle(self, leg: "Leg", taken: "Taken | None") -> Ends[None]:
        """Adds the metrics of a step to the tallies of the runs."""
        metrics = jax.device_get(taken.metrics) if taken else {}
        for member, run in list(leg.runs.items()) if taken else ():
            own = {name: values[member] for name, values in metrics.items()}
            yield from self._attempt(run, partial(run.settle, taken.steps[member], own))
            leg.drop(self._ended)

    def _pause(self, leg: "Leg", asked: int, stop: Stop, keep: bool) -> Ends[int]:
        """Logs, evaluates and saves what is due; `keep` leaves the runs their states.

        Returns the number of the signal on which the runs are to be left, or 0. If one arrives
        during the evaluation, the runs that were not evaluated are saved, and owe it.
        """
        measured = cache(lambda: _losses(next(iter(leg.runs.values())), leg.population, stop))
        for member, run in list(leg.runs.items()):
            run.state = leg.population.member(member)

            def means(member: int = member) -> Mapping[str, float]:
                return measured().means(member)

            found = yield from self._attempt(run, partial(run.pause, asked, stop, means))
            asked = asked or found or 0
        leg.drop(self._ended)
        for run in leg.runs.values():
            if asked or keep:
                run.save()
            if not (asked or keep or run.over):
                run.state = None
        leg.drop({run for run in self.runs if run.over})
        return asked

    def _attempt(self, run: Run, action: Callable[[], T]) -> Ends[T | None]:
        """Returns the result of an action, or yields its run, which ended, and the error.

        Errors that are no run's own are raised.
        """
        try:
            return action()
        except (UnwritableError, Unrecorded, OSError):
            raise
        except Exception as error:
            run.state = None
            self._ended.add(run)
            yield run, error

    def _leave(self, number: int, done: int) -> None:
        """Waits until all runs are saved, and raises `Stopped` for a signal."""
        saved = [run for run in self.runs if run not in self._ended]
        for run in saved:
            run.checkpoints.wait()
        raise Stopped(
            number,
            f"stopped by {signal.Signals(number).name} after step {done:,} of {saved[0].total:,} "
            f"of {plural(len(saved), 'run')}, which are saved; {RESUME}",
        )


@dataclass(frozen=True)
class Taken:
    """A step that was dispatched: each member's part of the data, and the metrics of all."""

    steps: Sequence[Step]
    metrics: Mapping[str, jax.Array]  # float32[M]


class Leg:
    """Steps of runs that have done equally many, whose states a population holds.

    Attributes:
      runs: The runs that go on, by their index in the population.
      population: Their states, and those of runs that ended and are computed on.
    """

    def __init__(self, runs: Sequence[Run]):
        self.runs = dict(enumerate(runs))
        self.population = Population.of([run.state for run in runs])
        self._lead, self._seeds = runs[0], [run.config.seed for run in runs]
        self._loaders = {run.config.seed: run.loader for run in reversed(runs)}
        for run in runs:
            run.state = None  # the population has it
            run.loader = self._loaders[run.config.seed]
            run.speed.start()

    def step(self) -> Taken:
        """Runs a step of all members, each on the batch that its seed gives."""
        taken = {seed: next(self._loaders[seed]) for seed in dict.fromkeys(self._seeds)}
        steps, own = [taken[seed] for seed in self._seeds], len(taken) > 1
        given = batches.stacked([step.batch for step in steps]) if own else steps[0].batch
        self.population, metrics = population_step(
            self._lead.model,
            self._lead.optimizer,
            self.population,
            self._lead.placer(given, parts=True, members=own),
            own=own,
            objective=self._lead.objective,
        )
        for run in self.runs.values():
            run.done += 1
        return Taken(steps, metrics)

    def drop(self, ended: set[Run]) -> None:
        """Forgets runs that ended; the population computes them on."""
        self.runs = {member: run for member, run in self.runs.items() if run not in ended}

    def leave_out(self, compiling: float) -> None:
        """Removes members whose run ended from the population, if that saves time."""
        gone = [member for member in range(len(self.population)) if member not in self.runs]
        if not (gone and self.runs):
            return
        run = next(iter(self.runs.values()))
        whole = run.speed.seconds * (run.total - run.done)
        if whole * len(gone) / len(self.population) < compiling:
            return
        self.population = self.population.without(gone)
        self._seeds = [seed for member, seed in enumerate(self._seeds) if member not in gone]
        self.runs = dict(enumerate(self.runs.values()))


def _losses(run: Run, population: Population, stop: Stop | None = None) -> Sums:
    """Returns the losses of all members over the held-out rows, which all runs share.

    Raises Interrupted on a signal, which `stop` tells of.
    """

    def between() -> None:
        if stop and stop.asked:
            raise Interrupted(stop.asked)

    def evaluate(batch: Batch) -> Mapping[str, jax.Array]:
        return population_sums(run.model, population, batch, run.objective)

    return Sums.of(evaluate, run.evaluator, run.placer, between)
