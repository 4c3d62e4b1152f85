"""Tasks, one module each: how a row becomes a prompt and a completion, and how answers are scored.

A task is a module of this package, a Python file of the user, or a module that an installed package
names as an entry point in the group `jaxtune.tasks`. It defines

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
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

from jaxtune.config.python_file import module_of
from jaxtune.data.errors import RowError, known
from jaxtune.display.errors import UserError
from jaxtune.metrics import Metric

GROUP = "jaxtune.tasks"  # entry points of installed packages


def names() -> list[str]:
    """Returns the names of all tasks, sorted: those of this package and of installed ones."""
    return sorted({*_own(), *entry_points(group=GROUP).names})


def find(name: str) -> ModuleType:
    """Returns the module of a task, by its name or the path of its file.

    Raises UserError if there is no such task, or if it does not define what a task must.
    """
    if name.endswith(".py"):
        return _checked(module_of(name), name)
    if name in _own():
        return importlib.import_module(f"{__name__}.{name}")
    (entry,) = entry_points(group=GROUP, name=known("data.task", name, names()))
    return _checked(entry.load(), name)


def _own() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(__path__)]


def _checked(task: ModuleType, name: str) -> ModuleType:
    """Returns a task that is not of this package; raises UserError unless it is one."""
    problems = [
        f"{attribute} is {'missing' if found is None else short(found)}; expected {expected}"
        for attribute, (holds, expected) in INTERFACE.items()
        if not holds(found := getattr(task, attribute, None))
    ]
    if problems:
        raise UserError(
            "\n  ".join([f"data.task: {name} is no task:", *problems])
            + "\nSee docs/extend.md for what a task defines"
        )
    return task


def _metrics(found: Any) -> bool:
    return isinstance(found, list | tuple) and all(isinstance(each, Metric) for each in found)


# What a task must define, and how that is told from other things.
INTERFACE: dict[str, tuple[Callable[[Any], bool], str]] = {
    "COLUMNS": (
        lambda found: isinstance(found, Mapping) and bool(found),
        "a dictionary from the columns that it reads to descriptions",
    ),
    "prefix": (callable, "a function prefix(record, place) that returns the text of the prompt"),
    "suffix": (callable, "a function suffix(record, place) that returns the completion"),
    "METRICS": (
        lambda found: _metrics(found) and bool(found),
        "a tuple of one or more jaxtune.metrics.Metric",
    ),
}


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
