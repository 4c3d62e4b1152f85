"""`inspect`: what a checkpoint holds, from its headers."""

import dataclasses
import json
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path

from jaxtune.cli.commands import UsageError


def arguments(parser: ArgumentParser) -> None:
    """What it takes."""
    parser.usage = f"{parser.prog} CHECKPOINT [--quant[=KINDS]] [--text FILE] [--mesh AXES] …"
    parser.add_argument(
        "checkpoint",
        nargs="?",  # as --quant may have taken it: see `meant`
        metavar="CHECKPOINT",
        help="a directory, owner/name or owner/name@revision",
    )
    parser.add_argument("--workdir", type=Path, metavar="DIR", help="default: runs/inspect/NAME")
    parser.add_argument("--mesh", metavar="AXES", help="lay leaves over, say, fsdp=8,tensor=2")
    parser.add_argument("--dtype", default="auto", help="of leaves on the mesh (default: stored)")
    parser.add_argument("--names", action="store_true", help="show the names in the files too")
    parser.add_argument(
        "--quant",
        nargs="?",
        const="",
        metavar="KINDS",
        help="what it takes in fewer bits; with kinds, such as --quant=nf4,int8, also what these "
        "do to weights and predictions, for which the weights are read",
    )
    parser.add_argument("--text", metavar="FILE", help="what to compare predictions on")
    parser.add_argument("--json", action="store_true", help="print the JSON, not the table")
    parser.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Print the report, and write it."""
    checkpoint, quant = meant(options.checkpoint, options.quant)
    asked = kinds(quant)
    if not asked:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # headers need no accelerator
    from jaxtune.cli.inspect.report import inspect
    from jaxtune.cli.inspect.table import table
    from jaxtune.display.progress import Progress
    from jaxtune.files import write_json

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
        print(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        print(table(report, names=options.names))
    # Not runs/NAME itself: that may be a run, or the very checkpoint.
    workdir = options.workdir or Path("runs/inspect") / checkpoint_name(checkpoint)
    write_json(workdir / "inspect.json", content)
    where = sys.stderr if options.json else sys.stdout
    print(f"\nwritten to {workdir / 'inspect.json'}", file=where)
    return 0


def meant(checkpoint: str | None, quant: str | None) -> tuple[str, str | None]:
    """The checkpoint and the kinds, also where `--quant` stands before the one and took it."""
    if checkpoint is not None:
        return checkpoint, quant
    if quant and ("/" in quant or Path(quant).expanduser().exists()):
        return quant, ""
    raise UsageError(
        "inspect takes a checkpoint, a directory or owner/name"
        + (f"; found none but --quant {quant!r}" if quant else "")
    )


def axes(text: str | None) -> Mapping[str, int] | None:
    """`fsdp=8,tensor=2` as a mapping."""
    if text is None:
        return None
    pairs = [pair.partition("=") for pair in text.split(",")]
    found = {name.strip(): int(size) for name, _, size in pairs if size.strip().isdecimal()}
    if len(found) < len(pairs):
        raise UsageError(f"--mesh {text!r}: expected axes and sizes, such as fsdp=8,tensor=2")
    return found


def kinds(text: str | None) -> list[str] | None:
    """`nf4,int8` as a list."""
    if text is None:
        return None
    return list(dict.fromkeys(kind.strip() for kind in text.split(","))) if text else []


def checkpoint_name(source: str) -> str:
    """The last part of a path or repository id."""
    path = Path(source).expanduser()
    return path.resolve().name if path.exists() else source.split("@")[0].split("/")[-1]
