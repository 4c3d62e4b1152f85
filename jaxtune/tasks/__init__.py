"""Tasks, one module each: how a row becomes a prompt and a completion, and how answers are scored.

A task module defines

- `COLUMNS`: the columns that it reads, with a description of each;
- `prefix(record, place)` and `suffix(record, place)`: the texts of the prompt and the completion;
- `METRICS`: metrics of `jaxtune.metrics`, the most important one first;

and may define

- `references(record, place)`: a tuple of one or more texts that answers are compared with; without
  it, the only reference is the suffix, stripped of white space;
- `ASK`: the column that a plain prompt typed at the terminal fills; the others are left out;
- `NEXT`: how many of the likeliest first tokens its metrics need in `Prediction.next`;
- `shown(answer, colour)`: an answer formatted for people; `colour` is true if the terminal shows
  colours;
- `drawn(text)`: the boxes (`jaxtune.metrics.boxes`) in an answer or a reference, to be drawn over
  the row's picture;
- `plots(answered)`: from each model's predictions by name, SVG texts by name and file name, with
  the same axes for all models;
- `remarks(rows)`: a list of sentences to print beside the metrics of these predictions;
- `prepared(record, place)`: the columns that the task reads, extracted from a published record.

These functions raise `RowError` for a record that they cannot convert.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from jaxtune.data.errors import RowError, known


def names() -> list[str]:
    """Returns the names of all tasks, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find(name: str) -> ModuleType:
    """Returns the module of a task; raises ValueError if there is no such task."""
    return importlib.import_module(f"{__name__}.{known('data.task', name, names())}")


def references(task: ModuleType, record: Mapping[str, Any], place: str) -> tuple[str, ...]:
    """Returns the texts that answers to a record are compared with, one or more."""
    if hasattr(task, "references"):
        return task.references(record, place)
    return (task.suffix(record, place).strip(),)


def texts(record: Mapping[str, Any], name: str, place: str) -> tuple[str, ...]:
    """Returns the non-empty texts of a column that holds one text or a list, each stripped.

    The tuple is empty if the column is missing, null or empty. Raises `RowError` for other values.
    """
    found = record.get(name)
    listed = [] if found is None else [found] if isinstance(found, str) else found
    if not isinstance(listed, list | tuple) or not all(isinstance(each, str) for each in listed):
        raise RowError(
            place, f"column {name!r} is {short(found)}; expected a text or a list of texts"
        )
    return tuple(each.strip() for each in listed if each.strip())


def short(value: Any) -> str:
    """Returns a value's `repr` for a message, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
