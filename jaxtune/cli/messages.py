"""Messages for people at the terminal: errors with what they are about, and suggestions."""

import difflib
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path

from jaxtune.cli.commands import COMMANDS, UsageError
from jaxtune.config.fields import at
from jaxtune.config.schema import FIELDS, SCHEMA
from jaxtune.display.escapes import MOST, cut, shown, unbroken, visible
from jaxtune.files import UnwritableError
from jaxtune.files.store import is_remote


def told(error: BaseException, options: Namespace | None = None) -> str:
    """Returns an error's message as the terminal gets it.

    An error about a file also says which option or field names it. Control characters are visible.
    `options` are those of the command, if they could be parsed.
    """
    message = str(error)
    if isinstance(error, UnwritableError):
        names = [name for name in _named(error.path, options) if name.startswith("--")]
        message += f"; choose another path with {names[0]}" if names else ""
    elif isinstance(error, OSError) and error.strerror:
        message = error.strerror
        if isinstance(error.filename, str | bytes | os.PathLike):
            name = os.fsdecode(error.filename)
            names = _named(Path(name), options)
            known = name if is_remote(name) else str(Path(name))
            message += f": {known!r}" + (f", from {names[0]}" if names else "")
        elif options is not None:
            message += f", in a file that the command {options.command} reads or writes"
    return visible(unbroken(message))


def defect(error: Exception) -> str:
    """Returns the message of an exception that no input should cause."""
    text = cut(unbroken(str(error)), 300)
    return visible(
        f"{type(error).__name__}: {text}\n  This is a defect of jaxtune. Run the command again "
        "with --debug for the traceback, and report it"
    )


def _named(file: Path, options: Namespace | None) -> list[str]:
    """Returns the options and config fields that name a file or a directory above it."""
    file, found = file.absolute(), []
    for name, given in _paths(options) if options else ():
        known = Path(os.path.expanduser(given)).absolute()
        if known == file or known in file.parents:
            found.append((len(known.parts), name))
    return [name for _, name in sorted(found, key=lambda each: -each[0])]


def _paths(options: Namespace) -> Iterator[tuple[str, str]]:
    """Yields options and config fields that may name files, with their values."""
    for name, value in vars(options).items():
        if isinstance(value, str | Path) and name in options.names:
            yield options.names[name], str(value)
    config = getattr(options, "settings", None)
    for key in FIELDS if config else ():
        value = at(config, key)
        for each in value if isinstance(value, tuple) else (value,):
            if isinstance(each, str) and each:
                yield key, each


def check_command(name: str) -> None:
    """Raises if there is no such command; the message suggests one."""
    if name in COMMANDS:
        return
    near = difflib.get_close_matches(name[:MOST], COMMANDS, 1)
    hint = f"did you mean {near[0]}?" if near else ""
    if name.partition(":")[0].endswith(".py"):
        hint = f"to train, pass --config {name}"
    raise UsageError(
        f"{shown(name)} is not a command{f' ({hint})' if hint else ''}; choose from "
        f"{', '.join(COMMANDS)}"
    )


def check_unknown(unknown: list[str], command: ArgumentParser) -> None:
    """Raises if arguments are left that a command does not know; the message suggests others.

    An option named like a config field is most likely an override without its prefix.
    """
    if not unknown:
        return
    name, equals, value = unknown[0].partition("=")
    if not name.startswith("--"):
        raise UsageError(f"{shown(unknown[0])}: unexpected argument (see {command.prog} --help)")
    if not equals:
        value = next((each for each in unknown[1:2] if not each.startswith("--")), "VALUE")
    known = [text for action in command._actions for text in action.option_strings]
    known = [text for text in known if text not in ("-h", "--help")]
    field = SCHEMA.called(name.removeprefix("--")) if "--config" in known else None
    near = difflib.get_close_matches(name[:MOST], known, 1, cutoff=0.7)
    if field:
        hint = f"did you mean --config.{field}={cut(value)}?"
    else:
        hint = f"did you mean {near[0]}?" if near else f"see {command.prog} --help"
    raise UsageError(f"{shown(unknown[0])}: {command.prog} has no such option; {hint}")
