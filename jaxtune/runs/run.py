"""A run: a config becomes steps, checkpoints, logs and in the end an adapter."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from jaxtune.assembly import wiring
from jaxtune.assembly.wiring import Placer, Start
from jaxtune.checkpoint.hub import locate
from jaxtune.config.schema import Config
from jaxtune.data.examples import Prompt
from jaxtune.data.loader import Loader
from jaxtune.data.sources import first
from jaxtune.display.progress import Progress, Quiet
from jaxtune.evaluation.held_out import EvalRow, metrics_of, questions
from jaxtune.export.export import Exported, Tuned, Wanted, export, verify
from jaxtune.export.push import Pushes, Unpushed, pushing, sign_in
from jaxtune.runs import console
from jaxtune.runs.loop import Run, RunError, Tally
from jaxtune.training.step import TrainState
from jaxtune.workdir.checkpoints import Checkpoints
from jaxtune.workdir.directory import Workdir, held
from jaxtune.workdir.journal import journal


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
    if first:
        sign_in(config, workdir)
    with (
        held(workdir, config, accept_changes=accept_changes) as place,
        pushing(config, place, progress, first) as pushes,
        _prepared(config, place, progress, pushes) as run,
        journal(place, config, run.done, first) as log,
        _signals() as asked,
        _advice(config),
    ):
        run.train(log, asked)
        return run.finish()


@contextlib.contextmanager
def _prepared(
    config: Config, workdir: Workdir, progress: Progress, pushes: Pushes | Unpushed
) -> Iterator[Run]:
    """All that a run needs, told of as it is made; what is cheap and may be wrong comes first."""
    with contextlib.ExitStack() as stack:
        directory = locate(config.model.path)
        mesh = wiring.mesh(config)
        place = wiring.placer(config, mesh)
        tokenizer = wiring.tokenizer(config, directory, workdir.started)
        prompt = wiring.prompt(config, tokenizer, wiring.pictures(directory))
        loader, evaluator, asked, compared = _loaders(
            config, directory, workdir, place, prompt, progress, stack
        )
        total = wiring.total_steps(config, loader)
        _tell(progress, console.of_steps(config, loader, total, place))
        progress.draw(f"reading the weights of {config.model.path}")
        model, variables = wiring.model(config, directory, mesh)
        optimizer = wiring.optimizer(config, total)
        start = Start(config, variables, optimizer, mesh)
        del variables  # what trains of them is given to the state
        _tell(progress, console.of_training(config, start, optimizer, place))
        checkpoints = _checkpoints(config, workdir)
        stack.callback(checkpoints.close)
        state, done, tally = _begun(checkpoints, start, loader, progress)

        def tuned(variables: dict, folder: Path, step: int | None = None):
            parts = config, directory, mesh, model, variables, start.dtype, step, workdir.path
            return _wanted(Tuned(*parts), folder)

        yield Run(
            config=config,
            workdir=workdir,
            progress=progress,
            model=model,
            optimizer=optimizer,
            start=start,
            place=place,
            loader=loader,
            evaluator=evaluator,
            checkpoints=checkpoints,
            total=total,
            state=state,
            done=done,
            tally=tally,
            saved=done,
            tokenizer=tokenizer,
            asked=asked,
            export=lambda variables, folder: export.save(*tuned(variables, folder)),
            deliver=lambda variables, step: _delivered(
                *tuned(variables, workdir.path / "export", step), compared, progress
            ),
            pushes=pushes,
        )


def _loaders(
    config: Config,
    directory: Path,
    workdir: Workdir,
    place: Placer,
    prompt: Prompt,
    progress: Progress,
    stack: contextlib.ExitStack,
) -> tuple[Loader, Loader | None, list[EvalRow], wiring.Rows]:
    """The batches to train on and those to evaluate on, once all rows have been read.

    And the rows to answer at each evaluation, and those that what is exported is compared on.
    """
    depends = wiring.identity(config, directory, workdir.started)
    train, held = (
        source
        and wiring.read(config, source, prompt, progress, (workdir.path / f".{name}.npz", depends))
        for name, source in zip(("train", "eval"), wiring.sources(config), strict=True)
    )
    _tell(progress, console.of_rows(config, train, held))
    loaders = (
        wiring.training(config, train, place.share),
        held and wiring.evaluating(config, held, place.share),
    )
    for each in filter(None, loaders):
        stack.callback(each.close)
    return *loaders, _questions(config, held, prompt), held or train


def _questions(config: Config, held: wiring.Rows | None, prompt: Prompt) -> list[EvalRow]:
    metric = config.checkpoint.metric
    known = [each.name for each in metrics_of(config)]
    if metric and metric not in known:
        raise ValueError(f"checkpoint.metric {metric!r}: expected one of {', '.join(known)}")
    if not config.eval.answers:
        return []
    if jax.process_count() > 1:
        raise ValueError(
            f"eval.answers is {config.eval.answers}, and {jax.process_count()} processes run this: "
            "one process answers; set eval.answers to 0, and after the run take the eval command"
        )
    if held is None:
        raise ValueError("eval.answers: there are no rows to answer; set eval.source or its like")
    return questions(config, first(held.source, config.eval.answers), prompt)


def _checkpoints(config: Config, workdir: Workdir) -> Checkpoints:
    kept = config.checkpoint
    return Checkpoints(workdir.path / "checkpoints", keep=kept.keep, best=kept.best)


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
    whole, base = "lora" not in tuned.variables, tuned.directory
    npz = base.suffix if base.is_file() else ""
    target = folder / (f"merged{npz}" if whole else "adapter")
    dtype = tuned.dtype if whole else "float32"
    return tuned, Wanted(target, whole, dtype, overwrite=True), target


def _delivered(
    tuned: Tuned, wanted: Wanted, target: Path, compared: wiring.Rows, progress: Progress
) -> Exported:
    """Written over what was written before, and verified on a few rows."""
    if jax.process_count() > 1:
        progress.say("not verified, as several processes hold the model: the export command does")
        export.save(tuned, wanted, target)
        export.described(tuned, wanted)
        return Exported(target, {})
    new = tuned.config.generate.max_new_tokens  # as in evaluations: it is the same program
    rows = verify.rows(compared.source, compared.prompt, tuned.model, "the first rows", new)
    return export.written(tuned, wanted, rows, progress)


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
def _advice(config: Config) -> Iterator[None]:
    """Say what to do where memory does not suffice."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        batch = config.batch
        raise RunError(
            f"the devices' memory does not suffice for {batch.rows // batch.accumulate} rows of up "
            f"to {batch.max_length:,} tokens at once: make batch.accumulate a larger divisor of "
            f"batch.rows ({batch.rows}), or batch.max_length smaller\n  {str(error)[:300]}"
        ) from error
