"""`devices`: shows what every process sees, and proves that all devices reach each other."""

import sys
from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path
from typing import Any

from jaxtune.cli import distributed
from jaxtune.cli.options import path, whole
from jaxtune.display.escapes import json_text, show

DEFAULT = Path("runs/devices")


def arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments to a parser."""
    parser.usage = f"{parser.prog} [--expect N] [--workdir DIR] [--json] {distributed.USAGE}"
    parser.add_argument(
        "--expect",
        type=lambda text: whole(text, 1, distributed.MOST),
        metavar="N",
        help="fail unless all processes together have N devices; the CPU counts only with "
        "JAX_PLATFORMS=cpu",
    )
    parser.add_argument(
        "--workdir",
        type=path,
        metavar="DIR",
        help=f"directory for devices.json (default: {DEFAULT})",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the JSON, once for all processes, and no text"
    )
    distributed.arguments(parser)
    parser.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Prints what this process sees, and writes what all see to devices.json.

    Every process prints, before any of them waits for the others, so that one that hangs or fails
    has said what it has.
    """
    distributed.join(options)
    from jaxtune.cli import devices
    from jaxtune.workdir import agreement

    options.workdir = options.workdir or DEFAULT
    say = _unsaid if options.json else _say
    say(devices.versions_text())
    view = devices.seen()
    say(devices.text(view))
    devices.check(view, options.expect)
    total = devices.summed(options.join_timeout)
    say(devices.sum_text(view, total))
    content = {"devices": view.total, "sum": total, "processes": devices.everyones(view)}
    file = agreement.of_first(partial(_written, options.workdir, content))
    if agreement.first():
        if options.json:
            print(json_text(content))
        show(f"written to {file}", sys.stderr if options.json else sys.stdout)
    return 0


def _written(workdir: Path, content: dict[str, Any]) -> str:
    """Writes devices.json, and returns its path."""
    from jaxtune.files import write_json
    from jaxtune.workdir.directory import claim

    claim(workdir)
    write_json(workdir / "devices.json", content)
    return str(workdir / "devices.json")


def _unsaid(text: str) -> None:
    """Prints nothing: the JSON has it."""


def _say(text: str) -> None:
    """Prints a text at once, as a log that is read while the command runs must have it."""
    show(text)
    sys.stdout.flush()
