"""Runs Python files of the user: config files, whose `get_config()` returns settings, and others.

Sweep files are run alike, with `get_sweep()`; files of tasks and objectives become modules. An
error that a file raises is reported with the line that it comes from.
"""

import difflib
import inspect
import re
import stat
import sys
import traceback
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxtune.config.fields import ConfigError
from jaxtune.display.escapes import MOST, cut, one_line, shown

MOST_BYTES = 1_048_576  # of a config file


def values_of(
    path: str, sections: Collection[str] = (), function: str = "get_config"
) -> tuple[Path, Mapping[str, Any]]:
    """Returns the path of a config file and what its `get_config()` returns, as dictionaries.

    `file.py:text` calls `get_config(text)`. `sections` are the names of the config's sections, for
    error messages. `function` is the name of another function to call.
    """
    file, arguments = _named(path)
    return file, _returned(file, arguments, sections, function)


def module_of(path: str) -> ModuleType:
    """Returns a file as a module, which is run once as long as its content stays the same.

    Raises ConfigError if it cannot be read or raises an error.
    """
    file, _ = _named(path)
    return _module(file, _source(file, "a task or an objective"))


@cache
def _module(file: Path, source: bytes) -> ModuleType:
    found = ModuleType(file.stem)
    found.__file__ = str(file)
    aside = redirect_stdout(sys.stderr)
    with _neighbours(file.parent.resolve()), _located(file, ()), aside:
        exec(compile(source, str(file), "exec"), vars(found))
    return found


def _named(text: str) -> tuple[Path, tuple[str, ...]]:
    """Splits `file.py:text` into the file's path and the arguments of its `get_config`."""
    named = re.fullmatch(r"(.+?\.py):(.*)", text, re.DOTALL)
    try:
        if named and not Path(text).exists():
            return Path(named[1]).expanduser(), (named[2],)
        return Path(text).expanduser(), ()
    except (OSError, RuntimeError) as error:  # a name that is too long; a home that is unknown
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{cut(one_line(text))} cannot be a config file: {reason}") from None


def _returned(
    file: Path, arguments: tuple[str, ...], sections: Collection[str], function: str
) -> Mapping[str, Any]:
    """Runs a config file, and returns what its `function` returns as dictionaries.

    What the file prints goes to standard error, since commands print JSON to standard output.
    """
    source = _source(file, f"{function}()")
    space: dict[str, Any] = {"__name__": file.stem, "__file__": str(file)}
    aside = redirect_stdout(sys.stderr)
    with _neighbours(file.parent.resolve()), _located(file, sections), aside:
        exec(compile(source, str(file), "exec"), space)
        called = space.get(function)
        _check_call(file, called, arguments, function)
        values = plain(called(*arguments))
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{file}: {function}() returned {shown(values)}, expected a ConfigDict or a dictionary"
        )
    return values


def _source(file: Path, content: str) -> bytes:
    """Returns the text of a file, which is expected to have some content."""
    expected = f"expected a Python file with {content}"
    try:
        about = file.stat()
        if not stat.S_ISREG(about.st_mode) and not stat.S_ISDIR(about.st_mode):
            raise ConfigError(f"{file} is not a regular file; {expected}")
        if about.st_size > MOST_BYTES:
            raise ConfigError(
                f"{file} has {about.st_size:,} bytes, and such a file at most {MOST_BYTES:,}; "
                f"{expected}"
            )
        return file.read_bytes()
    except ConfigError:
        raise
    except FileNotFoundError:
        there = [each.name for each in file.parent.glob("*.py")]
        near = difflib.get_close_matches(file.name, there, 1)
        hint = f"; did you mean {file.parent / near[0]}?" if near else ""
        raise ConfigError(f"{file}: no such file{hint}") from None
    except (OSError, ValueError) as error:  # a ValueError for a null character
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{cut(one_line(str(file)))} cannot be read ({reason}); {expected}"
        ) from None


def _check_call(file: Path, called: Any, arguments: tuple[str, ...], function: str) -> None:
    if not callable(called):
        raise ConfigError(
            f"{file} has no {function}(); define a function of that name that returns the settings "
            "that differ from the defaults, as a ConfigDict or a dictionary"
        )
    takes = inspect.signature(called)
    try:
        takes.bind(*arguments)
    except TypeError:
        given = shown(arguments[0]) if arguments else "no argument"
        takes = takes.replace(return_annotation=takes.empty)
        raise ConfigError(
            f"{file}: {function}{takes} cannot be called with {given}; its argument, if any, "
            f"follows a colon: --config={file}:ARGUMENT"
        ) from None


def plain(value: Any) -> Any:
    """Converts mappings and ml_collections' ConfigDicts to dictionaries.

    A ConfigDict is recognised by its `to_dict`, so that ml_collections need not be installed.
    """
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items()}
    return value


@contextmanager
def _neighbours(directory: Path) -> Iterator[None]:
    """Allows imports of modules from a directory during the block.

    Afterwards these modules are removed from `sys.modules`. No bytecode is written.
    """
    known, quiet = set(sys.modules), sys.dont_write_bytecode
    sys.path.insert(0, str(directory))
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.path.remove(str(directory))
        sys.dont_write_bytecode = quiet
        for name in set(sys.modules) - known:
            if Path(getattr(sys.modules[name], "__file__", None) or "").parent == directory:
                del sys.modules[name]


@contextmanager
def _located(file: Path, sections: Collection[str]) -> Iterator[None]:
    """Turns an error that a config file raises into a ConfigError that names the line."""
    try:
        yield
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(_report(error, file, sections)) from error


def _report(error: BaseException, file: Path, sections: Collection[str]) -> str:
    trace = traceback.extract_tb(error.__traceback__)
    places = [(each.filename, each.lineno, each.line) for each in trace]
    message = str(error)
    if isinstance(error, SyntaxError):
        places.append((error.filename or "", error.lineno, error.text))
        message = error.msg
    directory = file.parent.resolve()
    files = [place for place in places if not place[0].startswith("<")]
    own = [place for place in files if Path(place[0]).resolve().parent == directory]
    name, number, line = own[-1] if own else (file.name, None, None)
    where = str(file.parent / Path(name).name) + (f", line {number}" if number else "")
    section = message.strip("'\"")
    if isinstance(error, AttributeError) and section in sections:
        message += f"; create the section before you set its fields: config.{section} = dict(…)"
    if isinstance(error, SystemExit):
        message = "a config file must not end the program; remove this call"
    told = ": ".join(filter(None, (where, type(error).__name__, cut(message, 10 * MOST))))
    return told + (f"\n  {cut(line.strip())}" if line else "")
