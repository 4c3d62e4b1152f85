"""`sweep`: trains a config with many overrides, and ranks the trials."""

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace

from jaxtune.cli.commands import config_and_place, configured
from jaxtune.cli.options import filled, whole


def arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments to a parser."""
    configured(parser, "[--sweep FILE] [--dry-run] [--extend] [--storage URL] [--study NAME]")
    parser.add_argument(
        "--sweep",
        type=filled,
        metavar="FILE",
        help="Python file with get_sweep(), such as sweeps/x.py (default: the config file)",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="show the trials, what they share, and the memory and time that they take",
    )
    parser.add_argument(
        "--extend",
        action="store_true",
        help="add trials to a study that was begun with another space or fewer trials",
    )
    parser.add_argument(
        "--storage",
        type=filled,
        metavar="URL",
        help="database of the study, such as postgresql://user@host/database, for workers on "
        "several machines (default: a file in the workdir)",
    )
    parser.add_argument(
        "--study",
        type=filled,
        metavar="NAME",
        help="name of the study in the database (default: that of the workdir)",
    )
    parser.add_argument(
        "--together",
        type=lambda text: whole(text, 1, 64),
        default=8,
        metavar="N",
        help="train up to N trials together that share base and programs, as far as the devices' "
        "memory allows; 1 trains each by itself (default: 8)",
    )
    parser.add_argument(
        "--patience",
        type=seconds,
        default=60.0,
        metavar="SECONDS",
        help="give a trial to another worker when its own, on another machine, has given no sign "
        "of life for this long (default: 60)",
    )
    parser.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Works on the sweep until all trials have ended; returns 128 + n if signal n stopped it."""
    from jaxtune.runs.sweep.spec import Spec, read, refuse_remote

    refuse_remote(options.workdir)
    config, workdir = config_and_place(options)
    spec = Spec.of(config, read(options.sweep or options.config))
    from jaxtune.display.progress import Progress
    from jaxtune.runs.signals import Stopped

    if options.dry_run:
        from jaxtune.runs.sweep.dry import dry_run

        dry_run(spec, workdir, Progress(), options.together)
        return 0
    from jaxtune.runs.sweep import sweep

    try:
        sweep.run(
            spec,
            workdir,
            storage=options.storage,
            name=options.study,
            extend=options.extend,
            together=options.together,
            patience=options.patience,
            progress=Progress(),
        )
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 128 + stopped.number
    return 0


def seconds(text: str) -> float:
    """Returns a time from 1 second to a day."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value <= 86_400:
        raise ArgumentTypeError(f"found {text!r}, expected seconds from 1 to 86,400")
    return value
