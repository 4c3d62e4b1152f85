"""`preview`: shows the rows as a training step gets them, without reading weights."""

import os
import sys
from argparse import ArgumentParser, Namespace

from jaxtune.cli.commands import UsageError, config_and_place, configured


def arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments to a parser."""
    configured(parser, "[--rows N]")
    parser.add_argument("--rows", type=int, default=4, help="number of lines to print (default: 4)")
    parser.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Prints the counts and a few rows; writes the first step as a page, the counts as JSON."""
    if options.rows < 1:
        raise UsageError(f"--rows {options.rows}: expected 1 or more")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # rows need no accelerator
    config, workdir = config_and_place(options)
    from jaxtune.cli.preview.collect import preview
    from jaxtune.display.progress import Progress

    colour = sys.stdout.isatty()
    found = preview(config, workdir, options.rows, colour=colour, progress=Progress())
    print(found.text)
    print(f"written to {found.page} and {found.report}")
    return 0
