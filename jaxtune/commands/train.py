"""`train`: one run, from a config to an adapter."""

import sys
from argparse import ArgumentParser, Namespace

from jaxtune.commands import config_and_place, configured


def arguments(parser: ArgumentParser) -> None:
    """What it takes."""
    configured(parser)
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="go on with a run that was begun under another config",
    )
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="one of several processes, as on a TPU slice: each runs the same command",
    )
    parser.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Train, or go on training; a run that is asked to stop exits as its signal says."""
    config, workdir = config_and_place(options)
    import jax

    if options.distributed:
        jax.distributed.initialize()
    from jaxtune.loop import Stopped
    from jaxtune.run import fit

    try:
        fit(config, workdir, accept_changes=options.accept_changes)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 128 + stopped.number
    return 0
