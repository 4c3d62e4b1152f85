"""Trains from a config: opens a run, new or to be resumed, trains it, and exports the result."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from jaxtune.assembly import weights
from jaxtune.assembly.assemble import Assembly, LoadBase
from jaxtune.assembly.state import Start
from jaxtune.config.load import config_of, resolved
from jaxtune.config.run_sections import Checkpoint
from jaxtune.config.schema import Config
from jaxtune.config.training_sections import Batch
from jaxtune.display.progress import Progress, Quiet
from jaxtune.export import delivery
from jaxtune.export.push import pushing, sign_in
from jaxtune.export.tuned import Tuned
from jaxtune.models import host
from jaxtune.runs import console, numerics
from jaxtune.runs.ends import RESUME, RunError
from jaxtune.runs.loop import Report, Run
from jaxtune.runs.plan.ahead import plan_ahead
from jaxtune.runs.rows import RunRows
from jaxtune.runs.signals import stopping
from jaxtune.runs.tally import Tally
from jaxtune.training.step import TrainState
from jaxtune.workdir import agreement
from jaxtune.workdir.checkpoints import Checkpoints
from jaxtune.workdir.directory import METRICS, Workdir, decisive, run_directory
from jaxtune.workdir.errors import WorkdirError
from jaxtune.workdir.identity import Identity, refuse_replaced
from jaxtune.workdir.journal import journal, refuse_foreign_lines, refuse_missing
from jaxtune.workdir.mirror import local_workdir

UNTRAINED = "nothing was trained yet; run the same command again to start"
OTHER_FILES = "pass --accept-changes to continue with the present ones, or name another --workdir"


def fit(
    config: Config | Mapping[str, Any] | str | os.PathLike,
    workdir: Path | str,
    *,
    accept_changes: bool = False,
    plan: bool = True,
    progress: Progress | None = None,
    report: Report | None = None,
    load_base: LoadBase = weights.load_base,
    cache: Path | None = None,
) -> dict[str, Any]:
    """Trains as a config says, resuming the run in the workdir if there is one.

    Args:
      config: Config of the run: what `load_config` returns, the path of a config file, or nested
        dictionaries as `get_config` returns them.
      workdir: Directory of the run, a path or a URL; created if missing, and locked while the run
        uses it.
      accept_changes: Resumes a run that was begun under another config, instead of refusing it.
      plan: Compiles the run's programs before weights are read, and refuses a run that does not
        fit the devices.
      progress: Where the first process reports progress; standard output by default.
      report: Receives the values of each evaluation, and may end the run.
      load_base: Loads the base, which runs of one process may share.
      cache: Directory that keeps the survey of the rows, which runs may share; by default the
        workdir.

    Returns:
      The summary, as written to summary.json, with the result of the push if `hub.repo` is set.

    Raises:
      Stopped: If a signal stopped the run; it can be resumed.
      Pruned: If `report` ended the run; it can be resumed.
      RunError: If the run diverged, or the devices' memory does not suffice.
    """
    config = config_of(config)
    with (
        stopping(UNTRAINED, group=jax.process_count() > 1) as stop,
        opened(
            config,
            workdir,
            accept_changes=accept_changes,
            plan=plan,
            progress=progress,
            report=report,
            load_base=load_base,
            cache=cache,
        ) as run,
        _advice(config.batch),
    ):
        stop.at_once(RESUME if run.done else UNTRAINED)
        run.train(stop)
        return run.finish(stop)


@contextlib.contextmanager
def opened(
    config: Config,
    workdir: Path | str,
    *,
    accept_changes: bool = False,
    plan: bool = True,
    progress: Progress | None = None,
    report: Report | None = None,
    load_base: LoadBase = weights.load_base,
    cache: Path | None = None,
) -> Iterator[Run]:
    """Yields a run that is ready for its next step, with its directory locked; see `fit`.

    Cheap checks come before weights are read.
    """
    first = jax.process_index() == 0
    progress = (progress or Progress()) if first else Quiet()
    settings, workdir = resolved(config), local_workdir(workdir)
    if first:
        refuse_missing(config.log)
        sign_in(config.hub, workdir)
    with contextlib.ExitStack() as stack:
        directory = run_directory(workdir, settings, accept_changes=accept_changes)
        directory = stack.enter_context(directory)
        stack.enter_context(numerics.kept_kernels(directory.path))
        pushes = stack.enter_context(pushing(config.hub, directory, progress, first))
        assembly = _assembled(config, directory, progress, load_base)
        rows = _read(assembly, progress, stack, cache or directory.path)
        placer, total = assembly.placer, assembly.total_steps(rows.loader)
        _tell(progress, console.of_steps(config.batch, rows.loader, total, placer))
        checkpoints = _checkpoints(config.checkpoint, directory)
        stack.callback(checkpoints.close)
        if plan and (known := max(checkpoints.steps, default=0)) < total:
            plan_ahead(assembly, rows, progress, known)
        progress.draw(f"reading the weights of {config.model.path}")
        model, variables = assembly.model()
        optimizer = assembly.optimizer(total)
        start = assembly.start(variables, optimizer)
        del variables  # the state takes over the memory of the leaves that train
        _tell(progress, console.of_training(config.seed, start, optimizer, placer))
        _tell(progress, numerics.told(model, assembly.mesh))
        if progress.verbose:
            _tell(progress, console.leaf_table(start, placer))
        state, done, tally = _begun(checkpoints, start, rows, progress)
        _refuse_idle_changes(directory, done, total)
        directory.adopt(stands_on=assembly.identity)
        log = journal(directory, config.log, settings, done, first, owed=tally.owed)
        log = stack.enter_context(log)

        def tuned(variables: dict, step: int | None = None) -> Tuned:
            return Tuned(assembly, model, variables, step, directory.path)

        run = Run(
            config=config,
            workdir=directory,
            progress=progress,
            model=model,
            optimizer=optimizer,
            objective=assembly.objective,
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
            higher=assembly.higher,
            answered=rows.answered,
            export=lambda variables, folder: delivery.save_into(tuned(variables), folder),
            deliver=lambda variables, step: delivery.deliver(
                tuned(host.returned(variables), step), progress
            ),
            pushes=pushes,
            log=log,
            report=report,
        )
        del state  # the run frees it before its export is merged
        yield run


def _assembled(
    config: Config, workdir: Workdir, progress: Progress, load_base: LoadBase
) -> Assembly:
    """Returns the parts of a run; raises if they, or files in the workdir, are another run's."""
    refuse_foreign_lines(workdir.path / METRICS)
    delivery.refuse_in_the_way(config, workdir.path)
    assembly = replace(Assembly.of(config, workdir.started), load_base=load_base)
    if workdir.stepped and not workdir.accepts_changes:
        _tell(progress, refuse_replaced(workdir.path, assembly.identity, OTHER_FILES))
    agreement.refuse_different("the base and its tokenizer", _contents(assembly.identity))
    return assembly


def _read(
    assembly: Assembly, progress: Progress, stack: contextlib.ExitStack, cache: Path
) -> RunRows:
    """Reads the rows of a run; raises if processes find different ones."""
    rows = RunRows.read(assembly, progress, stack, cache)
    for name, each in (("training", rows.loader), ("held-out", rows.evaluator)):
        if each:
            agreement.refuse_different(f"the {name} rows", each.identity)
    return rows


def _contents(files: Identity) -> dict[str, dict[str, list]]:
    """Returns sizes and digests of files, without the times of writing."""
    return {
        kind: {name: list(each[:2]) for name, each in found.items()}
        for kind, found in files.items()
    }


def _checkpoints(given: Checkpoint, workdir: Workdir) -> Checkpoints:
    return Checkpoints(workdir.path / "checkpoints", keep=given.keep)


def _begun(
    checkpoints: Checkpoints,
    start: Start,
    rows: RunRows,
    progress: Progress,
) -> tuple[TrainState, int, Tally]:
    """Returns the state, step and tally of the newest checkpoint, or those of a new run."""
    if not checkpoints.begun:
        return start.state(), 0, Tally()
    found = checkpoints.restore(start.shapes)
    _tell(progress, [f"damaged checkpoint moved aside: {each}" for each in found.damaged])
    progress.say(f"resuming from step {found.step:,} in {checkpoints.directory}")
    rows.loader.restore(found.position["loader"])
    if rows.evaluator:
        rows.evaluator.check_files(found.position.get("held_out", []))
    return start.restored(found.state), found.step, Tally(**found.position["tally"])


def _refuse_idle_changes(workdir: Workdir, done: int, total: int) -> None:
    """Raises if the user accepts changes of a run that has no step left which they could change."""
    changes = decisive(workdir.changes)
    if changes and done >= total:
        raise WorkdirError(
            "\n  ".join([f"the run in {workdir.path} is complete; no step is left for:", *changes])
            + f"\nSet steps above {done:,}, or name another --workdir"
        )


def _tell(progress: Progress, lines: list[str]) -> None:
    for line in lines:
        progress.say(line)


@contextlib.contextmanager
def _advice(batch: Batch) -> Iterator[None]:
    """Turns a device's out-of-memory error into a RunError that says what to change."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise RunError(
            f"not enough device memory for {batch.rows // batch.accumulate} rows of up to "
            f"{batch.max_length:,} tokens at once: set batch.accumulate to a larger divisor of "
            f"batch.rows ({batch.rows}), or reduce batch.max_length\n  {str(error)[:300]}"
        ) from error
