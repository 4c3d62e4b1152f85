"""`eval`: answers held-out rows with the base, the tuned model or both, and scores the answers."""

from argparse import ArgumentParser, Namespace

from jaxtune.cli import distributed
from jaxtune.cli.commands import UsageError, config_and_place, configured
from jaxtune.cli.options import filled


def arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments to a parser."""
    configured(parser, f"[--base | --both] [--adapter DIR] {distributed.USAGE}")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--base", action="store_true", help="evaluate the untuned base only")
    which.add_argument(
        "--both",
        action="store_true",
        help="evaluate the base and the tuned model, and compare them",
    )
    parser.add_argument(
        "--adapter",
        type=filled,
        metavar="DIR",
        help="adapter or merged checkpoint to evaluate: a directory or Hub repository "
        "(default: the run's export)",
    )
    distributed.arguments(parser)
    parser.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Evaluates, or resumes an evaluation that was interrupted."""
    if options.base and options.adapter:
        raise UsageError(
            "--base evaluates the untuned base only: it cannot be combined with --adapter"
        )
    distributed.join(options)
    config, workdir = config_and_place(options, ("export", "eval"))
    from jaxtune.evaluation.compare import compare

    compare(
        config,
        workdir,
        base=options.base or options.both,
        tuned=not options.base,
        adapter=options.adapter,
    )
    return 0
