"""Counts the work of a chat template while it runs, and stops one that does too much.

A template is untrusted code: a line of it can ask for hours or for all memory. Work is counted in
units of about a nanosecond, so that the same template is stopped at the same place everywhere;
the processor time of the thread is limited as well, for work that the count underestimates.
"""

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Set, ValuesView
from typing import Any

from jaxtune.data.errors import DataError

STEP = 1000  # units of an iteration or a call
NODE = 500  # units of a value within a list or mapping that is walked
CHARACTER = 16  # units of a character that is written, which also bounds memory
BASE = 10**9  # units of one run of a template, besides those for its input
PER_CHARACTER, PER_NODE = 1000, 100 * STEP  # units for each character and value of the input
SECONDS = 10.0  # processor time of one run of a template
OFTEN = 64 * STEP  # units between two looks at the clock
OUTPUT, PER_INPUT = 2**22, 16  # characters of the output, and for each character of the input


class TemplateLimit(DataError):
    """A chat template that would take too long, or too much memory."""

    def __init__(self, what: str):
        super().__init__(
            f"the chat template was stopped, because it {what}; use another template with "
            "data.chat_template"
        )


class _Current(threading.local):
    """Count of the template that runs in this thread."""

    spent, limit, next_look, until = 0, BASE, 0, float("inf")


_current = _Current()


@contextlib.contextmanager
def metered(*given: Any) -> Iterator[int]:
    """Counts the work of a block, which may grow with the values given to it.

    Yields the most characters that the output may have.
    """
    nodes, characters = measured(given, 10**12)
    _current.spent, _current.next_look = 0, OFTEN
    _current.limit = BASE + nodes * PER_NODE + characters * PER_CHARACTER
    _current.until = time.thread_time() + SECONDS
    yield OUTPUT + PER_INPUT * characters


def spend(units: int) -> None:
    """Counts work before it is done; raises TemplateLimit if it is too much."""
    now = _current
    now.spent += units
    if now.spent > now.limit:
        raise TemplateLimit("does too much work for one conversation")
    if now.spent > now.next_look:
        now.next_look = now.spent + OFTEN
        if time.thread_time() > now.until:
            raise TemplateLimit(f"takes more than {SECONDS:.0f} seconds for one conversation")


def counted(values: Iterable[Any]) -> Iterator[Any]:
    """Yields values, each of which counts as a step."""
    for value in values:
        spend(STEP)
        yield value


def measured(value: Any, most: int | None = None) -> tuple[int, int]:
    """Returns the number of values within a value, and of characters in its texts and names.

    A value that is contained twice counts twice, as it does when it is written. Stops with
    TemplateLimit after `most` values; by default, when the work of counting is too much.
    """
    nodes = characters = 0
    pending = [value]
    while pending:
        each = pending.pop()
        nodes += 1
        if most is None:
            spend(NODE)
        elif nodes > most:
            raise TemplateLimit("is given too many values")
        if isinstance(each, str | bytes):
            characters += len(each)
        elif isinstance(each, Mapping):
            pending += [*each.keys(), *each.values()]
        elif isinstance(each, list | tuple | Set | ValuesView):
            pending += each
        elif attributes := getattr(each, "_Namespace__attrs", None):
            pending.append(attributes)
    return nodes, characters


def built(value: Any) -> Any:
    """Returns a value after counting what it contains, so that no value grows without work."""
    if isinstance(value, str | bytes):
        spend(len(value) * CHARACTER)
    elif isinstance(value, list | tuple | Mapping | Set):
        spend(measured(value)[1])
    return value


def weighed(value: Any) -> Any:
    """Returns a value after counting a look at all of it, as a comparison takes."""
    if isinstance(value, str | bytes):
        spend(len(value))
    elif isinstance(value, list | tuple | Mapping | Set):
        spend(measured(value)[1])
    return value


def cut(value: Any) -> Any:
    """Returns a part of a text or a list after counting the copy."""
    if isinstance(value, str | bytes | list | tuple):
        spend(len(value) * CHARACTER)
    return value
