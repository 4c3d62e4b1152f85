"""A run in progress: its training loop, and the logs, evaluations and checkpoints due in it."""

import math
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxtune.assembly.placer import Placer
from jaxtune.assembly.state import Start
from jaxtune.config.schema import Config
from jaxtune.data.loader import Loader, Step
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.decoding.text import TextGenerator
from jaxtune.display.escapes import plural
from jaxtune.display.progress import Progress, duration
from jaxtune.evaluation import held_out
from jaxtune.evaluation.held_out import EvalRow
from jaxtune.export.push import Pushes, Unpushed
from jaxtune.export.write import Exported
from jaxtune.files.fetched import known_as
from jaxtune.metrics import Metric
from jaxtune.models import host
from jaxtune.models.paligemma import Model
from jaxtune.runs.ends import FIRST, RESUME, Interrupted, Pruned, RunError, advice, lost
from jaxtune.runs.signals import Stop, Stopped
from jaxtune.runs.summary import ending, memory, summary_of
from jaxtune.runs.tally import Speed, Tally
from jaxtune.training.objectives import CROSS_ENTROPY, Objective
from jaxtune.training.optim import Optimizer
from jaxtune.training.step import TrainState, train_step
from jaxtune.workdir.checkpoints import Checkpoints
from jaxtune.workdir.directory import SAVED, Workdir
from jaxtune.workdir.journal import Journal, Silent

# Returns the mean loss and metrics over the held-out rows.
Measure = Callable[[], Mapping[str, float]]
# Receives the step and the values of an evaluation, and returns whether the run ends there.
Report = Callable[[int, Mapping[str, float]], bool]


@dataclass(eq=False)
class Run:
    """A run in progress: its parts, its state and its position.

    `train` runs its steps. Whoever runs them otherwise, such as together with those of other runs,
    calls `begin`, after each step `settle`, and `pause` after the steps that are `due`.
    """

    config: Config
    workdir: Workdir
    progress: Progress
    model: Model
    optimizer: Optimizer
    objective: Objective
    start: Start
    placer: Placer
    loader: Loader
    evaluator: Loader | None
    checkpoints: Checkpoints
    total: int  # steps of the whole run
    state: TrainState
    done: int  # steps so far, those before a resume included
    tally: Tally
    saved: int  # step of the newest checkpoint
    export: Callable[[dict, Path], Path]  # writes variables to a directory in a published layout
    deliver: Callable[[dict, int], Exported]  # writes and verifies the final export of a step
    pushes: Pushes | Unpushed
    log: Journal | Silent
    report: Report | None  # of each evaluation
    tokenizer: Tokenizer
    task: ModuleType | None  # None unless the config names one
    metrics: Sequence[Metric]  # of the answers
    higher: Mapping[str, bool]  # whether more is better, of each metric that may choose the best
    answered: Sequence[EvalRow]  # held-out rows to answer at each evaluation
    speed: Speed = field(default_factory=Speed)
    # Of the last step whose metrics were read. The loop computes nothing with JAX besides steps: on
    # an accelerator, the host would wait for the step that was dispatched last.
    loss: float | None = None
    norm: float | None = None  # of the gradient
    rate: float | None = None  # learning rate
    _asked: Callable[[], int] = lambda: 0  # the signal that breaks an evaluation off, or 0

    def train(self, stop: Stop) -> None:
        """Runs the remaining steps, with the logs, evaluations and checkpoints due after them.

        On a signal, the step under way is finished and saved, and `Stopped` is raised; before the
        first step, and where the program is not the command line's, see `Stop`. An evaluation is
        then left out, or broken off, and done when the run is resumed. If the run diverges,
        `RunError` is raised.
        """
        ahead: tuple[Step, Mapping] | None = None
        self.begin()
        while not self.over:
            step = next(self.loader)
            batch = self.placer(step.batch, parts=True)
            given = (self.model, self.optimizer, self.state, batch)
            self.state, metrics = train_step(*given, objective=self.objective)
            # The devices compute this step while the host reads the metrics of the previous one.
            if ahead:
                self.settle(*ahead)
            ahead = (step, metrics)
            self.done += 1
            stop.after(FIRST, RESUME)
            asked = stop.agreed(self.done)
            if asked or self.due:
                self.settle(*ahead)
                ahead = None
                asked = self.pause(asked, stop)
            if asked:
                self.leave(asked)

    def begin(self, measure: Measure | None = None) -> None:
        """Evaluates before the next step where that is due, and starts the clock.

        That is before the first step, and where a signal broke off the last evaluation.
        `measure` returns the held-out loss and metrics, by default those of `state`.
        """
        if self.evaluates_first:
            self.tally.before = self._evaluate(measure)["loss"]
            self.progress.say(f"before training: held-out loss {self.tally.before:.4f}")
            self._answer()
        elif self.tally.owed:
            _, pruned = self._evaluated(measure)
            if pruned and not self.over:
                raise Pruned(self.done, self.tally.seconds)
        self.speed.start()

    def finish(self, stop: Stop) -> dict[str, Any]:
        """Saves the last state, exports the best one, writes summary.json and pushes.

        Returns the summary. The run's state is freed on the way, so no step can follow.
        """
        self.save()
        self.checkpoints.wait()
        self.workdir.check()
        self.workdir.note(**{SAVED: True})
        stop.at_once(
            f"all {self.done:,} steps are saved; run the same command again to export them"
        )
        exported = self._export()
        summary = {
            **summary_of(self.tally, self.loader, self.start, self.done, self.total),
            "checkpoints": [
                f"{known_as(self.checkpoints.directory)}/{n}" for n in self.checkpoints.steps
            ],
            "exported": known_as(exported.path),
            "verified": exported.report.get("kept"),
        }
        self.workdir.write("summary.json", summary)
        self.progress.say(ending(summary))
        exported.check()
        if pushed := self.pushes.ended(exported.path, self._caption(exported=True)):
            self.workdir.write("summary.json", summary | pushed)
        return summary | pushed

    @property
    def over(self) -> bool:
        """Whether no step is left."""
        return self.done >= self.total or self._hopeless

    @property
    def _hopeless(self) -> bool:
        """Whether the best score is `eval.patience` evaluations old, so that training stops."""
        patience = self.config.eval.patience
        return patience is not None and self.tally.worse >= patience

    @property
    def due(self) -> bool:
        """Whether a log line, an evaluation or a checkpoint is due after this step."""
        config = self.config
        return any(map(self._at, (config.log.every, config.eval.every, config.checkpoint.every)))

    @property
    def evaluates_first(self) -> bool:
        """Whether the untrained weights are to be evaluated now."""
        return self.evaluator is not None and self.done == 0

    @property
    def evaluates(self) -> bool:
        """Whether an evaluation is due after this step."""
        return self.evaluator is not None and self._at(self.config.eval.every)

    def _at(self, every: int | None) -> bool:
        """Whether this step is the last one or a multiple of `every`."""
        return self.done == self.total or bool(every and self.done % every == 0)

    def pause(self, asked: int, stop: Stop, measure: Measure | None = None) -> int:
        """Logs, evaluates and saves whatever is due after this step, whose metrics are settled.

        Args:
          asked: Number of a signal on which the state is saved and not evaluated; or 0.
          stop: Tells of a signal that arrives during an evaluation.
          measure: Returns the held-out loss and metrics, by default those of `state`.

        Returns:
          The number of the signal on which the run is to be left, or 0.

        Raises:
          Pruned: If `report` ends the run here.
          RunError: If the held-out loss is not finite.
        """
        self.workdir.check()
        if self._at(self.config.log.every):
            self._log()
        better, pruned = False, False
        if self.evaluates:
            self.tally.owed = True
            self._asked = (lambda: asked) if asked or stop.group else (lambda: stop.asked)
            try:
                better, pruned = self._evaluated(measure)
            except Interrupted as interrupted:
                asked = interrupted.number
        wanted = asked or pruned or self._hopeless or self._at(self.config.checkpoint.every)
        if wanted or (better and self.config.checkpoint.best):
            self.save()
        if pruned and not self.over:
            self.checkpoints.wait()
            raise Pruned(self.done, self.tally.seconds)
        self.pushes.tell()
        self.speed.start()
        return asked

    def _evaluated(self, measure: Measure | None) -> tuple[bool, bool]:
        """Evaluates; returns whether the state is the best so far, and whether the run ends.

        Raises Interrupted on a signal.
        """
        figures = {**self._evaluate(measure), **self._answer()}
        self.tally.owed = False
        better = self._compare(figures["loss"], self._score(figures))
        return better, bool(self.report and self.report(self.done, figures))

    def interrupt(self) -> None:
        """Raises Interrupted if a signal asks that an evaluation be broken off."""
        if number := self._asked():
            raise Interrupted(number)

    def settle(self, step: Step, metrics: Mapping) -> None:
        """Adds a step's metrics to the tally; raises RunError if they show that the run is lost."""
        named = {name: float(value) for name, value in metrics.items()}
        loss, norm, weight, rate = map(named.pop, ("loss", "gradient_norm", "weight", "lr"))
        tally = self.tally
        guess = math.log(self.model.config.vocabulary) if self.objective == CROSS_ENTROPY else None
        if reason := tally.lost(loss, norm, guess):
            self.checkpoints.wait()
            found = f"loss {loss:.4g}, gradient norm {norm:.4g}; the first loss was"
            raise RunError(
                f"step {step.number + 1:,}: {reason}: {found} {tally.first_loss:.4g}\n"
                + lost(step.places, self.checkpoints, self.config)
            )
        self.loss, self.norm, self.rate = loss, norm, rate
        tally.add(loss, weight, named)
        tally.tokens += step.tokens
        tally.scored += step.scored
        tally.examples += step.examples
        tally.seconds += self.speed.note(step.tokens)
        self.progress.draw(self._status(step.number + 1, loss))

    def _log(self) -> None:
        tally = self.tally
        means = tally.means()
        values = {
            "epoch": self.done / self.loader.steps_per_epoch,
            **means,
            "gradient_norm": self.norm,
            "lr": float(f"{self.rate:.6g}"),
            "tokens": tally.tokens,
            "scored_tokens": tally.scored,
            "examples": tally.examples,
        }
        timings = {"tokens_per_second": self.speed.tokens}
        if peak := memory()["bytes"]:
            timings["memory"] = peak
        self.log.write(self.done, "train", values, timings)
        if not self.progress.live:
            self.progress.say(self._status(self.done, means["loss"]))

    def _status(self, step: int, loss: float) -> str:
        return (
            f"step {step:,}/{self.total:,}  loss {loss:.4f}  lr {self.rate:.3g}  "
            f"{self.speed.tokens:,.0f} tokens/s  "
            f"{duration((self.total - step) * self.speed.seconds)} left"
        )

    def _evaluate(self, measure: Measure | None) -> Mapping[str, float]:
        """Computes, logs and returns the mean loss and metrics over the held-out rows."""
        self.progress.draw(f"step {self.done:,}: evaluating")
        try:
            means = (measure or self._measure)()
        except held_out.LossError as error:
            raise RunError(
                f"step {self.done:,}: {error}\n  if the training loss is finite, check these rows; "
                f"otherwise {advice(self.config)}"
            ) from None
        self.log.write(self.done, "eval", means, {})
        return means

    def _measure(self) -> Mapping[str, float]:
        given = (self.model, self.state.variables, self.evaluator, self.placer)
        return held_out.means(*given, self.objective, self.interrupt)

    def _answer(self) -> dict[str, float]:
        """Answers held-out rows; logs and returns the metrics, or {} if there are no such rows."""
        if not self.answered:
            return {}
        config = self.config
        variables = host.returned(self.state.variables)
        given = (self.model, variables, self.tokenizer, config.generate, config.seed)
        generator = TextGenerator(*given)
        where = self.workdir.path / "eval" / f"step-{self.done:06}"
        found, _ = held_out.evaluate(
            generator,
            self.answered,
            self.task,
            self.metrics,
            where,
            self.progress,
            between=self.interrupt,
        )
        figures = {name: figure.value for name, figure in found.items() if figure.value is not None}
        self.log.write(self.done, "answers", figures, {})
        text = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        self.progress.say(
            f"step {self.done:,}: answers to {plural(len(self.answered), 'row')}: {text}"
        )
        return figures

    def _score(self, figures: Mapping[str, float]) -> float:
        """Returns a score, lower is better: the loss, or the metric that the config names."""
        wanted = self.config.checkpoint.metric
        if not wanted:
            return figures["loss"]
        higher = self.higher[wanted]
        value = figures.get(wanted, math.nan)
        return math.inf if math.isnan(value) else -value if higher else value

    def _compare(self, loss: float, score: float) -> bool:
        """Records an evaluation in the tally, and returns whether it is the best so far."""
        tally, best = self.tally, self.tally.best_loss
        better = tally.best_score is None or score < tally.best_score
        by = self.config.checkpoint.metric and f" by {self.config.checkpoint.metric}"
        note = f"; previous best{by} {best:.4f} at step {tally.best_step:,}" if best else ""
        self.progress.say(f"step {self.done:,}: held-out loss {loss:.4f}{note}")
        if better:
            tally.best_loss, tally.best_score, tally.best_step = loss, score, self.done
        tally.worse = 0 if better else tally.worse + 1
        return better

    def save(self) -> None:
        """Saves the state and position, unless those of this step are saved."""
        if self.saved != self.done:
            held_out = self.evaluator.files if self.evaluator else []
            position = {
                "loader": self.loader.state(),
                "held_out": held_out,
                "tally": vars(self.tally),
            }
            best = self.tally.best_step or None if self.config.checkpoint.best else None
            self.checkpoints.save(self.done, self.state.replace(frozen=None), position, best)
            if self.saved:  # that one is on disk, now that another is begun
                self.workdir.note(**{SAVED: True})
            self.saved = self.done
            if not self.over:  # after the last step, the final export is pushed instead
                self.pushes.saved(
                    partial(self.export, self.state.variables), self.done, self._caption()
                )

    def _caption(self, exported: bool = False) -> str:
        """Returns the commit message of a push: step and loss of the present or exported state."""
        tally = self.tally
        if exported and tally.best_loss is not None and self.config.checkpoint.best:
            return f"step {tally.best_step:,}, held-out loss {tally.best_loss:.4f}"
        return f"step {self.done:,}" + (f", loss {self.loss:.4f}" if self.loss is not None else "")

    def leave(self, number: int) -> None:
        """Waits until the last checkpoint is written, and raises `Stopped` for a signal."""
        self.checkpoints.wait()
        raise Stopped(
            number,
            f"stopped by {signal.Signals(number).name} after step {self.done:,} of "
            f"{self.total:,}, saved as {self.checkpoints.directory}/{self.done}; run the same "
            "command again to resume",
        )

    def _export(self) -> Exported:
        """Exports the best state, or the last one if no best one is kept; frees the run's state."""
        best, config = self.tally.best_step, self.config
        state, step, self.state = self.state, self.done, None
        if config.checkpoint.best and best not in (0, self.done):
            kept = self.checkpoints.restore(self.start.shapes, best).state
            state, step = kept.replace(frozen=state.frozen), best
        variables = state.variables
        del state  # frees the optimiser state: verification needs the memory
        self.start.release()
        return self.deliver(variables, step)
