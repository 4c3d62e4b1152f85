"""jaxtune at the terminal: `python launch.py [COMMAND] …` runs one command, by default `train`."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from jaxtune.cli.commands import COMMANDS, DEFAULT, UsageError, overrides


class Parser(argparse.ArgumentParser):
    """argparse whose errors take the way of all others."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would have printed."""
        raise UsageError(f"{message} ({self.prog} --help says more)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 2 for what the user can put right."""
    try:
        options = parsed(list(sys.argv[1:] if arguments is None else arguments))
        return options.run(options)
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


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The options of a command, of which only the one that is named is imported."""
    if arguments and arguments[0].startswith("-") and arguments[0] not in ("-h", "--help"):
        arguments = [DEFAULT, *arguments]
    root = Parser(prog="launch.py", description="Exact, memory-aware fine-tuning in JAX.")
    commands = root.add_subparsers(metavar="COMMAND", dest="command", required=True)
    for name, about in COMMANDS.items():
        command = commands.add_parser(name, help=about, description=about)
        if arguments[:1] == [name]:
            importlib.import_module(f"jaxtune.cli.commands.{name}").arguments(command)
    rest, changes = overrides(arguments)
    options = root.parse_args(rest)
    if changes and "config" not in options:
        raise UsageError(f"{changes[0]}: {options.command} reads no config")
    options.overrides = changes
    return options


if __name__ == "__main__":
    sys.exit(main())
