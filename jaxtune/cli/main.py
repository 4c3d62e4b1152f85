"""The command line: reads arguments and runs one command, by default `train`."""

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from jaxtune.cli import distributed
from jaxtune.cli.commands import COMMANDS, DEFAULT, EXAMPLES, UsageError, overrides, uploading
from jaxtune.cli.messages import check_command, check_unknown, defect, told
from jaxtune.display.errors import UserError
from jaxtune.runs import signals

INTERRUPTED = 128  # exit codes above it are this plus the number of the signal


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises its errors, so that `main` reports them like all others."""

    def error(self, message: str) -> NoReturn:
        """Raises the message that argparse would have printed before exiting."""
        raise UsageError(f"{message} (see {self.prog} --help)")


def console(program: str) -> NoReturn:
    """Runs `main`, and ends the process, also on a signal."""
    signals.end_program()
    code = main(program=program)
    # Native threads that have not ended would crash an orderly exit, and JAX would wait for others.
    if code > INTERRUPTED or (code and distributed.joined()):
        signals.end(code)
    signals.release()
    sys.exit(code)


def main(arguments: Sequence[str] | None = None, program: str = "launch.py") -> int:
    """Runs one command and returns the exit code.

    It is 2 for errors that the user can correct, and 1 for an unexpected one, which is a defect of
    jaxtune: with --debug it is raised.
    """
    options = None
    try:
        options = parsed(list(sys.argv[1:] if arguments is None else arguments), program)
        with uploading():
            code = options.run(options)
        distributed.leave()
        return code
    except BrokenPipeError as error:
        # The reader, such as `head`, has closed the pipe; Python must not flush to it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        distributed.fail(error, 1, "its standard output was closed")
        return 1
    except (UserError, OSError) as error:
        return _failed(error, 2, f"error: {told(error, options)}")
    except KeyboardInterrupt as error:
        return _failed(error, 130, "interrupted")
    except Exception as error:
        if options is None or options.debug:
            distributed.fail(error, 1, defect(error))
            if not distributed.joined():
                raise
            traceback.print_exception(error)
            return 1
        return _failed(error, 1, f"error: {defect(error)}")


def _failed(error: BaseException, code: int, text: str) -> int:
    """Prints the message of an error, and returns the exit code."""
    distributed.fail(error, code, text.removeprefix("error: "))
    print(text, file=sys.stderr)
    return code


def parsed(arguments: list[str], program: str = "launch.py") -> argparse.Namespace:
    """Parses the arguments of a command; only the module of that command is imported."""
    if arguments and arguments[0].startswith("-") and arguments[0] not in ("-h", "--help"):
        arguments = [DEFAULT, *arguments]
    if arguments and not arguments[0].startswith("-"):
        check_command(arguments[0])
    root = Parser(prog=program, description="Exact, memory-aware fine-tuning in JAX.")
    chosen = root
    commands = root.add_subparsers(metavar="COMMAND", dest="command", required=True)
    for name, about in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=about,
            description=f"{about[0].upper()}{about[1:]}.",
            epilog="\n".join(["examples:", *(f"  {program} {each}" for each in EXAMPLES[name])]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument(
            "--debug", action="store_true", help="print the traceback of an unexpected error"
        )
        if arguments[:1] == [name]:
            chosen = command
            importlib.import_module(f"jaxtune.cli.commands.{name}").arguments(command)
    rest, changes = overrides(arguments)
    options, unknown = root.parse_known_args(rest)
    check_unknown(unknown, chosen)
    if changes and "config" not in options:
        raise UsageError(f"{changes[0]}: {options.command} does not read a config")
    options.overrides = changes
    options.names = {
        each.dest: (each.option_strings or [each.dest])[-1] for each in chosen._actions
    }
    return options
