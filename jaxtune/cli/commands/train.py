"""`train`: runs the training that a config describes, up to the export."""

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable

from jaxtune.cli.commands import UsageError, config_and_place, configured

PLACES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments to a parser."""
    configured(parser, "[--accept-changes] [--distributed] [--no-plan] [--verbose]")
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="resume a run that was started with a different config",
    )
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="run as one of several processes, each started with this command; on TPU slices and "
        f"under SLURM they find each other, elsewhere set {', '.join(PLACES)}",
    )
    parser.add_argument(
        "--no-plan",
        action="store_true",
        help="start without compiling first and without checking that the run fits the devices",
    )
    parser.add_argument("--verbose", action="store_true", help="list every trained leaf")
    parser.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Trains, or resumes a run; if a signal stopped it, returns 128 + the signal's number."""
    config, workdir = config_and_place(options, None)
    import jax

    if options.distributed:
        join(jax.distributed.initialize)
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


def join(initialize: Callable[..., None]) -> None:
    """Joins the other processes of a run; JAX finds them where `PLACES` does not name them."""
    address, count, number = map(os.environ.get, PLACES)
    try:
        initialize(address, count and int(count), number and int(number))
    except (ValueError, RuntimeError) as error:
        raise UsageError(
            f"--distributed: this process cannot join the others ({error}); expected a TPU slice, "
            f"SLURM, or {', '.join(PLACES)} in the environment"
        ) from None
