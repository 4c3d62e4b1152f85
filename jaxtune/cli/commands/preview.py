"""`preview`: shows the rows as a training step gets them, without reading weights."""

import os
import sys
from argparse import ArgumentParser, Namespace

from jaxtune.cli.commands import config_and_place, configured
from jaxtune.cli.options import count
from jaxtune.display.escapes import show


def arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments to a parser."""
    configured(parser, "[--rows N]")
    parser.add_argument(
        "--rows", type=count, default=4, help="number of lines to print (default: 4)"
    )
    parser.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Prints the counts and a few rows; writes the first step as a page, the counts as JSON."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # rows need no accelerator
    config, workdir = config_and_place(options)
    from jaxtune.cli.preview.collect import preview
    from jaxtune.display.progress import Progress

    colour = sys.stdout.isatty()
    found = preview(config, workdir, options.rows, colour=colour, progress=Progress())
    print(found.text)  # has our colours; what comes from the rows was made visible
    show(f"written to {found.page} and {found.report}")
    return 0
