"""The rows of a run: its loaders of batches, and the held-out rows that it answers."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from jaxtune.assembly.assemble import Assembly
from jaxtune.assembly.rows import Rows
from jaxtune.data.loader import Loader
from jaxtune.data.sources import first
from jaxtune.display.errors import UserError
from jaxtune.display.progress import Progress
from jaxtune.evaluation.held_out import EvalRow, eval_rows
from jaxtune.runs import console


@dataclass(frozen=True)
class RunRows:
    """Rows of a run, read once: loaders for training and evaluation, and rows to answer."""

    train: Rows
    held_out: Rows | None
    loader: Loader
    evaluator: Loader | None
    answered: list[EvalRow]  # held-out rows to answer at each evaluation

    @classmethod
    def read(
        cls,
        assembly: Assembly,
        progress: Progress,
        stack: contextlib.ExitStack,
        cache: Path | None = None,
        limit: int | None = None,
    ) -> "RunRows":
        """Reads all rows once, reports their counts, and opens the loaders of their batches.

        Args:
          assembly: The parts of the run.
          progress: Where counts are reported.
          stack: Closes the loaders at its end.
          cache: Directory that keeps what was found for the next time.
          limit: Number of rows of each source to read, from the start; None reads all.
        """
        # Made now, so that wrong settings fail before rows are opened.
        assembly.encoder, assembly.placer  # noqa: B018
        train, held_out = (
            source
            and assembly.survey(first(source, limit), progress, cache and cache / f".{name}.npz")
            for name, source in zip(("train", "eval"), assembly.sources, strict=True)
        )
        for line in console.of_rows(assembly.config.batch.max_length, train, held_out):
            progress.say(line)
        return cls.of(assembly, train, held_out, _answered(assembly, held_out), stack)

    @classmethod
    def of(
        cls,
        assembly: Assembly,
        train: Rows,
        held_out: Rows | None,
        answered: list[EvalRow],
        stack: contextlib.ExitStack,
    ) -> "RunRows":
        """Opens the loaders of rows that were read before."""
        placer = assembly.placer
        loader = assembly.training(train, placer.share)
        evaluator = held_out and assembly.evaluating(held_out, placer)
        for each in filter(None, (loader, evaluator)):
            stack.callback(each.close)
        return cls(train, held_out, loader, evaluator, answered)


def _answered(assembly: Assembly, held_out: Rows | None) -> list[EvalRow]:
    """Returns the rows to answer at each evaluation: the first `eval.answers` held-out ones."""
    config = assembly.config
    metric, count = config.checkpoint.metric, config.eval.answers
    known = assembly.higher if count else getattr(assembly.objective, "METRICS", {})
    if metric and metric not in known:
        raise UserError(f"checkpoint.metric {metric!r}: expected one of {', '.join(known)}")
    if not count:
        return []
    if held_out is None:
        raise UserError(
            "eval.answers: no held-out rows to answer; set eval.source, eval.split or eval.holdout"
        )
    return eval_rows(config.data, first(held_out.source, count), assembly.encoder, assembly.task)
