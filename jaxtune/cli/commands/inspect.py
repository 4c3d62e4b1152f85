"""`inspect`: reports what a checkpoint holds, from its headers."""

import dataclasses
import os
import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path

from jaxtune.cli.commands import UsageError, opened_workdir
from jaxtune.cli.options import filled, path
from jaxtune.display.escapes import json_text, show, shown

SIZE = re.compile(r"[0-9]{1,6}")  # of a mesh axis


def arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments to a parser."""
    parser.usage = f"{parser.prog} CHECKPOINT [--quant[=KINDS]] [--text FILE] [--mesh AXES] …"
    parser.add_argument(
        "checkpoint",
        type=filled,
        nargs="?",  # argparse may have given it to --quant: see `meant`
        metavar="CHECKPOINT",
        help="a directory, or owner/name or owner/name@revision on the Hub",
    )
    parser.add_argument(
        "--workdir",
        type=path,
        metavar="DIR",
        help="directory for inspect.json (default: runs/inspect/NAME)",
    )
    parser.add_argument(
        "--mesh", metavar="AXES", help="show how a mesh, such as fsdp=8,tensor=2, shards the leaves"
    )
    parser.add_argument(
        "--dtype", default="auto", help="dtype of the leaves on the mesh (default: as stored)"
    )
    parser.add_argument(
        "--names", action="store_true", help="also show the names of the tensors in the files"
    )
    parser.add_argument(
        "--quant",
        nargs="?",
        const="",
        metavar="KINDS",
        help="show the sizes of the quantised model; with kinds, such as --quant=nf4,int8, also "
        "read the weights and measure the errors in weights and predictions",
    )
    parser.add_argument(
        "--text", type=filled, metavar="FILE", help="text file to compare predictions on"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Prints the report, and writes it to inspect.json."""
    checkpoint, quant = meant(options.checkpoint, options.quant)
    asked = kinds(quant)
    if not asked:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # headers need no accelerator
    from jaxtune.cli.inspect.report import inspect
    from jaxtune.cli.inspect.table import table
    from jaxtune.display.progress import Progress
    from jaxtune.files import write_json
    from jaxtune.workdir.directory import claim

    # Not runs/NAME itself, which may be a run or this very checkpoint.
    place = options.workdir or Path("runs/inspect") / checkpoint_name(checkpoint)
    options.workdir = opened_workdir(place)
    progress = Progress(sys.stderr)
    report = inspect(
        checkpoint,
        axes(options.mesh),
        options.dtype,
        asked,
        options.text,
        progress.draw,
    )
    if asked and progress.live:
        progress.say()
    content = dataclasses.asdict(report)
    if options.json:
        print(json_text(content))
    else:
        show(table(report, names=options.names))
    claim(options.workdir)
    file = options.workdir / "inspect.json"
    write_json(file, content)
    where = sys.stderr if options.json else sys.stdout
    show(f"\nwritten to {file}", where)
    return 0


def meant(checkpoint: str | None, quant: str | None) -> tuple[str, str | None]:
    """Returns the checkpoint and the kinds.

    If `--quant` stands directly before the checkpoint, argparse takes the checkpoint as its value;
    this is corrected here.
    """
    if checkpoint is not None:
        return checkpoint, quant
    if quant and ("/" in quant or Path(quant).expanduser().exists()):
        return quant, ""
    raise UsageError(
        "inspect: expected a checkpoint, as a directory or owner/name"
        + (f"; found only --quant {quant!r}" if quant else "")
    )


def axes(text: str | None) -> Mapping[str, int] | None:
    """Parses mesh axes such as `fsdp=8,tensor=2` into sizes by name."""
    if text is None:
        return None
    pairs = [pair.partition("=") for pair in text.split(",")]
    found = {name.strip(): int(size) for name, _, size in pairs if SIZE.fullmatch(size.strip())}
    if len(found) < len(pairs):
        raise UsageError(
            f"--mesh {shown(text)}: expected axes and sizes, such as fsdp=8,tensor=2, of up to "
            "999,999 devices"
        )
    return found


def kinds(text: str | None) -> list[str] | None:
    """Parses kinds such as `nf4,int8`: None without `--quant`, [] if it names no kind."""
    if text is None:
        return None
    return list(dict.fromkeys(kind.strip() for kind in text.split(","))) if text else []


def checkpoint_name(source: str) -> str:
    """Returns the last part of a path, or of a repository id without its revision."""
    path = Path(source).expanduser()
    return path.resolve().name if path.exists() else source.rstrip("/").split("@")[0].split("/")[-1]
