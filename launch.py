"""jaxtune at the terminal: `python launch.py COMMAND …` runs one command."""

import argparse
import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn


class UsageError(ValueError):
    """Arguments that make no command, or a place that cannot be written to."""


class Parser(argparse.ArgumentParser):
    """argparse whose errors take the way of all others."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would have printed."""
        raise UsageError(f"{message} ({self.prog} --help says more)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 2 for what the user can put right."""
    try:
        options = parser().parse_args(arguments)
        options.run(options)
    except BrokenPipeError:
        # Whoever read the output, such as `head`, has seen enough; Python must not flush again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def parser() -> Parser:
    """The command line; a command imports what it needs only when it runs."""
    root = Parser(prog="launch.py", description="Exact, memory-aware fine-tuning in JAX.")
    commands = root.add_subparsers(metavar="COMMAND", dest="COMMAND", required=True)
    add_inspect(commands)
    return root


def add_inspect(commands: Any) -> None:
    """`inspect`: its arguments and help."""
    about = "what a checkpoint holds, from headers alone: its tree, totals and tokenizer"
    command = commands.add_parser("inspect", help=about, description=about)
    command.add_argument("checkpoint", help="a directory, owner/name or owner/name@revision")
    command.add_argument("--workdir", type=Path, metavar="DIR", help="default: runs/inspect/NAME")
    command.add_argument("--mesh", metavar="AXES", help="lay leaves over, say, fsdp=8,tensor=2")
    command.add_argument("--dtype", default="auto", help="of leaves on the mesh (default: stored)")
    command.add_argument("--names", action="store_true", help="show the names in the files too")
    command.add_argument("--json", action="store_true", help="print the JSON, not the table")
    command.set_defaults(run=run_inspect)


def run_inspect(options: argparse.Namespace) -> None:
    """Print the report, and write it."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # headers need no accelerator
    from jaxtune.inspect import inspect, table

    report = inspect(options.checkpoint, axes(options.mesh), options.dtype)
    print(as_json(report) if options.json else table(report, names=options.names))
    # Not runs/NAME itself: that may be a run, or the very checkpoint.
    workdir = options.workdir or Path("runs/inspect") / checkpoint_name(options.checkpoint)
    written = write_json(workdir, "inspect", report)
    print(f"\nwritten to {written}", file=sys.stderr if options.json else sys.stdout)


def axes(text: str | None) -> Mapping[str, int] | None:
    """`fsdp=8,tensor=2` as a mapping."""
    if text is None:
        return None
    pairs = [pair.partition("=") for pair in text.split(",")]
    found = {name.strip(): int(size) for name, _, size in pairs if size.strip().isdecimal()}
    if len(found) < len(pairs):
        raise UsageError(f"--mesh {text!r}: expected axes and sizes, such as fsdp=8,tensor=2")
    return found


def checkpoint_name(source: str) -> str:
    """The last part of a path or repository id."""
    path = Path(source).expanduser()
    return path.resolve().name if path.exists() else source.split("@")[0].split("/")[-1]


def as_json(report: Any) -> str:
    """A command's report as text."""
    return json.dumps(dataclasses.asdict(report), indent=2, ensure_ascii=False)


def write_json(workdir: Path, command: str, report: Any) -> Path:
    """Write a command's report under its name, whole or not at all."""
    final = workdir / f"{command}.json"
    partial = workdir / f".{final.name}.partial-{os.getpid()}"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        partial.write_text(as_json(report) + "\n", encoding="utf-8")
        partial.replace(final)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise UsageError(
            f"{final} cannot be written: {error.strerror}; --workdir names another directory"
        ) from None
    return final


if __name__ == "__main__":
    sys.exit(main())
