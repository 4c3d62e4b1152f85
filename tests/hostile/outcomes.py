"""What became of one input: success, a clean message, or a defect of some kind."""

import contextlib
import io
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

SUCCESS, MESSAGE, DEFECT = "success", "message", "defect"
# Kinds of defects.
TRACEBACK, HANG, CRASH, SILENT, DIFFERENT, WORDS = KINDS = (
    "traceback",  # an exception that is no message for a person
    "hang",  # no answer for `workers.PATIENCE` seconds
    "crash",  # the process died
    "silent",  # an input was accepted that must not be
    "different",  # a resumed run is not byte-identical, or lost something
    "words",  # a message that is bare, endless or raw
)
LONGEST, MOST_LINES = 8_000, 80  # characters and lines of one message
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # terminal escapes and the like
# Messages of Python and its libraries that say neither where nor what to do.
BARE = re.compile(
    r"(\[Errno|embedded null|cannot reshape|could not broadcast|Expecting |Extra data|"
    r"Out of range float|'\S+' codec can't|invalid literal|must be |can only |"
    r"expected (str|bytes|int)|unhashable|'.+' object |'.+' not supported|"
    r"\S+\(\) got an unexpected|I/O operation|"
    r"math domain|cannot convert float|array is too big|Maximum allowed|Traceback|\w+Error\b|$)"
)
FRAME = re.compile(r'File "[^"]*?(jaxtune/[^"]+)", line \d+,? in (\S+)')


class Silent(Exception):
    """An input was accepted that must not be; raised by the checks of a class."""


class Different(Exception):
    """A result that differs from that of an undisturbed run; raised by the checks of a class."""


class Exited(Exception):
    """A command that ended with an exit code other than 0, and what it wrote to stderr."""

    def __init__(self, code: Any, text: str):
        super().__init__(text)
        self.code, self.text = code, text


@dataclass(frozen=True)
class Outcome:
    """Outcome of one input; `signature` is equal for defects with the same cause."""

    kind: str
    defect: str = ""
    text: str = ""
    signature: str = ""


def defect(kind: str, text: str, cause: str = "") -> Outcome:
    """Returns the outcome of a defect."""
    return Outcome(DEFECT, kind, text[-2_000:], f"{kind}: {cause or text[:120]}")


def judged(check: Callable[[Any], None], value: Any) -> Outcome:
    """Runs a check on an input and judges how it ends; what it prints is dropped."""
    try:
        with contextlib.redirect_stdout(_stream()), contextlib.redirect_stderr(io.StringIO()):
            check(value)
    except Silent as error:
        return defect(SILENT, str(error), str(error).partition(":")[0])
    except Different as error:
        return defect(DIFFERENT, str(error), str(error).partition(":")[0])
    except Exited as error:
        return of_command(error)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return of_exception(error)
    return Outcome(SUCCESS)


def _stream() -> io.TextIOWrapper:
    """Returns an output that, as a terminal, takes only what UTF-8 can encode."""
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)


def of_command(error: Exited) -> Outcome:
    """Judges a command that failed by its exit code and by what it said."""
    if error.code != 2 or "Traceback (most recent" in error.text:
        cause = where(error.text) or f"exit code {error.code}"
        return defect(TRACEBACK, f"exit code {error.code}: {error.text}", cause)
    text = error.text.partition("error: ")[2].strip()
    if raw := RAW.search(text):
        return defect(WORDS, f"raw {raw[0]!r} in: {text!r}", "raw characters")
    return of_message(text)


def of_exception(error: BaseException) -> Outcome:
    """Judges an exception of the Python interface, and its message as a terminal would get it."""
    from jaxtune.display.escapes import unbroken, visible

    text = traced(error)
    cause = f"{type(error).__name__} in {where(text)}"
    if not for_people(error):
        return defect(TRACEBACK, text, cause)
    return of_message(visible(unbroken(str(error))), cause)


def for_people(error: BaseException) -> bool:
    """Whether an exception is meant as a message; a TypeError is one if we raise it ourselves."""
    from jaxtune.display.errors import UserError

    own = "/jaxtune/" in traceback.extract_tb(error.__traceback__)[-1].filename
    return isinstance(error, UserError) or (type(error) is TypeError and own)


def of_message(text: str, cause: str = "") -> Outcome:
    """Judges the words of a message."""
    if len(text) > LONGEST or text.count("\n") > MOST_LINES:
        return defect(WORDS, f"a message of {len(text):,} characters: {text}", f"endless {cause}")
    if BARE.match(text):
        return defect(WORDS, f"bare: {text}", f"bare {cause} {re.sub('[0-9]+', '0', text)[:40]}")
    return Outcome(MESSAGE, text=text)


def where(text: str) -> str:
    """Returns the innermost place of jaxtune in a printed traceback, without its line number."""
    found = FRAME.findall(text)
    return " in ".join(reversed(found[-1])) if found else ""


def traced(error: BaseException) -> str:
    """Returns the traceback of an exception."""
    return "".join(traceback.format_exception(error))


def command(*arguments: str) -> None:
    """Runs a command in this process; raises `Exited` unless its exit code is 0.

    What the command would call a defect of jaxtune is written with its traceback.
    """
    from unittest import mock

    from jaxtune.cli import main

    err = io.StringIO()
    with (
        contextlib.redirect_stderr(err),
        empty_stdin(),
        mock.patch.object(main, "defect", traced),
    ):
        try:
            code = main.main(list(arguments))
        except SystemExit as error:
            code = error.code
    if code:
        raise Exited(code, err.getvalue())


@contextlib.contextmanager
def empty_stdin() -> Iterator[None]:
    """Replaces standard input by an empty one, so that nothing waits for a person."""
    before, sys.stdin = sys.stdin, io.StringIO()
    try:
        yield
    finally:
        sys.stdin = before
