"""One file a task: how a record becomes text, and how answers to it are scored.

A task is a module here. It has

- `COLUMNS`: the names it reads, and what they hold;
- `prefix(record, place)` and `suffix(record, place)`: what is read, and what is learnt;
- `METRICS`, of `jaxtune.metrics`: how good answers are, the first being the headline;

and, where it has something to say,

- `references(record, place)`: the texts that answers are compared with, a tuple of one or more;
  else it is the suffix without the space around it;
- `ASK`: the column that a plain prompt at the terminal fills, the others being left out;
- `NEXT`: how many of the likeliest first tokens its metrics want, as `Answered.next`;
- `shown(answer, colour)`: an answer as a person likes to see it, `colour` saying whether the
  terminal shows colours;
- `drawn(text)`: the boxes of `jaxtune.metrics.boxes` that an answer or a reference tells of, which
  are drawn over the row's picture;
- `plots(answered)`: of each name's answers SVG texts by file name, all names' on equal axes;
- `remarks(rows)`: what has to be said of the metrics of these answers, a list of sentences;
- `prepared(record, place)`: the columns read here, of a record as it was published.

A record that they cannot write is a `RowError`.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from jaxtune.data.errors import RowError, known


def names() -> list[str]:
    """The tasks there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find(name: str) -> ModuleType:
    """A task by name."""
    return importlib.import_module(f"{__name__}.{known('data.task', name, names())}")


def references(task: ModuleType, record: Mapping[str, Any], place: str) -> tuple[str, ...]:
    """The texts that answers to a record are compared with."""
    if hasattr(task, "references"):
        return task.references(record, place)
    return (task.suffix(record, place).strip(),)


def texts(record: Mapping[str, Any], name: str, place: str) -> tuple[str, ...]:
    """What a column says in one text or a list of them; none where it is not there or empty."""
    found = record.get(name)
    listed = [] if found is None else [found] if isinstance(found, str) else found
    if not isinstance(listed, list | tuple) or not all(isinstance(each, str) for each in listed):
        raise RowError(
            place, f"column {name!r} is {short(found)}; a text or a list of texts was expected"
        )
    return tuple(each.strip() for each in listed if each.strip())


def short(value: Any) -> str:
    """A value as a message has it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
