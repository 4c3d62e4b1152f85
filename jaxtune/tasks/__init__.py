"""One file a task: how a record becomes text.

A task is a module here with `COLUMNS`, the names it reads and what they hold, and the functions
`prefix(record, place)` and `suffix(record, place)`; a record they cannot write is a `RowError`.
"""

import importlib
import pkgutil
from types import ModuleType

from jaxtune.data.errors import known


def names() -> list[str]:
    """The tasks there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find(name: str) -> ModuleType:
    """A task by name."""
    return importlib.import_module(f"{__name__}.{known('data.task', name, names())}")
