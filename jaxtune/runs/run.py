"""A run: a config becomes steps, checkpoints, logs and in the end an adapter."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from jaxtune.assembly.assemble import Assembly
from jaxtune.assembly.rows import Rows
from jaxtune.assembly.state import Start
from jaxtune.config.load import resolved
from jaxtune.config.run_sections import Checkpoint
from jaxtune.config.schema import Config
from jaxtune.config.training_sections import Batch
from jaxtune.data.loader import Loader
from jaxtune.data.sources import first
from jaxtune.display.progress import Progress, Quiet
from jaxtune.evaluation.held_out import EvalRow, eval_rows
from jaxtune.export import verify
from jaxtune.export.push import Pushes, Unpushed, pushing, sign_in
from jaxtune.export.targets import Wanted, default_name
from jaxtune.export.tuned import Tuned
from jaxtune.export.write import Exported, save, write_card, write_verified
from jaxtune.runs import console
from jaxtune.runs.loop import Run, RunError, Tally
from jaxtune.training.step import TrainState
from jaxtune.workdir.checkpoints import Checkpoints
from jaxtune.workdir.directory import Workdir, run_directory
from jaxtune.workdir.journal import journal


@dataclass(frozen=True)
class RunRows:
    """The rows of a run, read once: batches to train and evaluate on, and what else is asked."""

    loader: Loader
    evaluator: Loader | None
    answered: list[EvalRow]  # held-out rows to answer at each evaluation
    compared: Rows  # what is exported is compared on the first of these


def fit(
    config: Config,
    workdir: Path,
    *,
    accept_changes: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train as a config says, in a directory, going on with what is there; the run's summary."""
    first = jax.process_index() == 0
    progress = (progress or Progress()) if first else Quiet()
    settings = resolved(config)
    if first:
        sign_in(config.hub, workdir)
    with (
        run_directory(workdir, settings, accept_changes=accept_changes) as directory,
        pushing(config.hub, directory, progress, first) as pushes,
        _prepared(config, directory, progress, pushes) as run,
        journal(directory, config.log, settings, run.done, first) as log,
        _signals() as asked,
        _advice(config.batch),
    ):
        run.train(log, asked)
        return run.finish()


@contextlib.contextmanager
def _prepared(
    config: Config, workdir: Workdir, progress: Progress, pushes: Pushes | Unpushed
) -> Iterator[Run]:
    """All that a run needs, told of as it is made; what is cheap and may be wrong comes first."""
    with contextlib.ExitStack() as stack:
        assembly = Assembly.of(config, workdir.started)
        placer = assembly.placer
        rows = _rows(assembly, workdir, progress, stack)
        total = assembly.total_steps(rows.loader)
        _tell(progress, console.of_steps(config.batch, rows.loader, total, placer))
        progress.draw(f"reading the weights of {config.model.path}")
        model, variables = assembly.model()
        optimizer = assembly.optimizer(total)
        start = assembly.start(variables, optimizer)
        del variables  # what trains of them is given to the state
        _tell(progress, console.of_training(config.seed, start, optimizer, placer))
        checkpoints = _checkpoints(config.checkpoint, workdir)
        stack.callback(checkpoints.close)
        state, done, tally = _begun(checkpoints, start, rows.loader, progress)

        def tuned(variables: dict, folder: Path, step: int | None = None):
            found = Tuned(assembly, model, variables, start.dtype, step, workdir.path)
            return _wanted(found, folder)

        yield Run(
            config=config,
            workdir=workdir,
            progress=progress,
            model=model,
            optimizer=optimizer,
            start=start,
            placer=placer,
            loader=rows.loader,
            evaluator=rows.evaluator,
            checkpoints=checkpoints,
            total=total,
            state=state,
            done=done,
            tally=tally,
            saved=done,
            tokenizer=assembly.tokenizer,
            task=assembly.task,
            metrics=assembly.metrics,
            answered=rows.answered,
            export=lambda variables, folder: save(*tuned(variables, folder)),
            deliver=lambda variables, step: _delivered(
                *tuned(variables, workdir.path / "export", step), rows.compared, progress
            ),
            pushes=pushes,
        )


def _rows(
    assembly: Assembly, workdir: Workdir, progress: Progress, stack: contextlib.ExitStack
) -> RunRows:
    """Read all rows once, and open the loaders of their batches."""
    assembly.encoder  # noqa: B018 (what is wrong with settings comes up before rows are opened)
    train, held_out = (
        source and assembly.survey(source, progress, workdir.path / f".{name}.npz")
        for name, source in zip(("train", "eval"), assembly.sources, strict=True)
    )
    length = assembly.config.batch.max_length
    _tell(progress, console.of_rows(length, train, held_out))
    share = assembly.placer.share
    loader = assembly.training(train, share)
    evaluator = held_out and assembly.evaluating(held_out, share)
    for each in filter(None, (loader, evaluator)):
        stack.callback(each.close)
    return RunRows(loader, evaluator, _answered(assembly, held_out), held_out or train)


def _answered(assembly: Assembly, held_out: Rows | None) -> list[EvalRow]:
    """The held-out rows to answer at each evaluation; none where the config asks for none."""
    config = assembly.config
    metric, count = config.checkpoint.metric, config.eval.answers
    known = [each.name for each in assembly.metrics]
    if metric and metric not in known:
        raise ValueError(f"checkpoint.metric {metric!r}: expected one of {', '.join(known)}")
    if not count:
        return []
    if jax.process_count() > 1:
        raise ValueError(
            f"eval.answers is {count}, and {jax.process_count()} processes run this: "
            "one process answers; set eval.answers to 0, and after the run take the eval command"
        )
    if held_out is None:
        raise ValueError("eval.answers: there are no rows to answer; set eval.source or its like")
    return eval_rows(config.data, first(held_out.source, count), assembly.encoder, assembly.task)


def _checkpoints(given: Checkpoint, workdir: Workdir) -> Checkpoints:
    return Checkpoints(workdir.path / "checkpoints", keep=given.keep, best=given.best)


def _begun(
    checkpoints: Checkpoints,
    start: Start,
    loader: Loader,
    progress: Progress,
) -> tuple[TrainState, int, Tally]:
    """The state to go on from, the steps that led to it, and what they showed."""
    if not checkpoints.steps:
        return start.state(), 0, Tally()
    found = checkpoints.restore(start.shapes)
    _tell(progress, [f"damaged, and put aside: {each}" for each in found.damaged])
    progress.say(f"going on from step {found.step:,}, as {checkpoints.directory} has it")
    loader.restore(found.position["loader"])
    return start.restored(found.state), found.step, Tally(**found.position["tally"])


def _wanted(tuned: Tuned, folder: Path) -> tuple[Tuned, Wanted, Path]:
    """A run's adapter, or where it has none the whole model, and where it goes."""
    whole, base = "lora" not in tuned.variables, tuned.assembly.checkpoint
    target = folder / default_name(whole, base)
    dtype = tuned.dtype if whole else "float32"
    return tuned, Wanted(target, whole, dtype, overwrite=True), target


def _delivered(
    tuned: Tuned, wanted: Wanted, target: Path, compared: Rows, progress: Progress
) -> Exported:
    """Written over what was written before, and verified on a few rows."""
    if jax.process_count() > 1:
        progress.say("not verified, as several processes hold the model: the export command does")
        save(tuned, wanted, target)
        write_card(tuned, wanted)
        return Exported(target, {})
    new = tuned.assembly.config.generate.max_new_tokens  # as in evaluations: it is the same program
    rows = verify.rows(compared.source, compared.encoder, tuned.model, "the first rows", new)
    return write_verified(tuned, wanted, rows, progress)


def _tell(progress: Progress, lines: list[str]) -> None:
    for line in lines:
        progress.say(line)


@contextlib.contextmanager
def _signals() -> Iterator[Callable[[], int]]:
    """What gives the signal that asks to stop, or 0; a second one interrupts at once."""
    asked: list[int] = []

    def note(number: int, _: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    # Several processes hear of it from each other, by JAX's own handler.
    alone = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
    caught = (signal.SIGTERM, signal.SIGINT) if alone else ()
    before = {number: signal.signal(number, note) for number in caught}
    try:
        yield lambda: asked[0] if asked else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _advice(batch: Batch) -> Iterator[None]:
    """Say what to do where memory does not suffice."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise RunError(
            f"the devices' memory does not suffice for {batch.rows // batch.accumulate} rows of up "
            f"to {batch.max_length:,} tokens at once: make batch.accumulate a larger divisor of "
            f"batch.rows ({batch.rows}), or batch.max_length smaller\n  {str(error)[:300]}"
        ) from error
