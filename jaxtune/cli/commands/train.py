"""`train`: runs the training that a config describes, up to the export."""

import sys
from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path

from jaxtune.cli import distributed
from jaxtune.cli.commands import config_and_place, configured


def arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments to a parser."""
    configured(parser, f"[--accept-changes] [--no-plan] [--verbose] {distributed.USAGE}")
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="resume a run that was started with a different config",
    )
    parser.add_argument(
        "--no-plan",
        action="store_true",
        help="start without compiling first and without checking that the run fits the devices",
    )
    parser.add_argument("--verbose", action="store_true", help="list every trained leaf")
    distributed.arguments(parser)
    parser.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Trains, or resumes a run; if a signal stopped it, returns 128 + the signal's number."""
    distributed.join(options, partial(_resuming, options), preemptible=True)
    config, workdir = config_and_place(options, None)
    from jaxtune.display.progress import Progress
    from jaxtune.runs.run import fit
    from jaxtune.runs.signals import Stopped

    try:
        progress = Progress(verbose=options.verbose)
        fit(
            config,
            workdir,
            accept_changes=options.accept_changes,
            plan=not options.no_plan,
            progress=progress,
        )
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 128 + stopped.number
    return 0


def _resuming(options: Namespace) -> str:
    """Returns what to do when another process is lost: resume, and from which step."""
    from jaxtune.workdir.checkpoints import Checkpoints

    known = isinstance(options.workdir, Path)  # else the run was not opened yet
    found = Checkpoints(options.workdir / "checkpoints") if known else None
    if not (found and found.steps):
        return f"{distributed.AGAIN}: no step was saved yet, so training starts over"
    return (
        f"{distributed.AGAIN}: training resumes from step {found.steps[-1]:,}, in {found.directory}"
    )
