"""`config`: what a config may set, and what one file and its overrides resolve to."""

from argparse import ArgumentParser, Namespace

from jaxtune.cli.commands import UsageError
from jaxtune.cli.options import filled
from jaxtune.display.escapes import json_text, show


def arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments to a parser."""
    parser.usage = f"{parser.prog} [SECTION | FIELD | --config FILE [--config.key=value …]]"
    parser.add_argument(
        "name",
        nargs="?",
        metavar="SECTION",
        help="a section such as optim, or a field such as optim.lr (default: everything)",
    )
    parser.add_argument(
        "--config",
        type=filled,
        metavar="FILE",
        help="print the resolved config of this file as JSON",
    )
    parser.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Prints the reference of fields, or the resolved config of a file as JSON."""
    if options.config is None:
        if options.overrides:
            raise UsageError(f"{options.overrides[0]}: add --config FILE, the config to change")
        from jaxtune.config import reference

        show(reference.text(options.name or ""))
        return 0
    if options.name:
        raise UsageError(
            f"{options.name}: cannot be combined with --config, which prints all sections"
        )
    from jaxtune.config.load import load, resolved

    found = resolved(load(options.config, options.overrides))
    print(json_text(found))
    return 0
