"""Finds the objective of a config: in a Python file of the user, or in an installed package."""

from collections.abc import Callable
from importlib.metadata import entry_points
from inspect import getfile
from pathlib import Path
from typing import Any

from jaxtune.config.python_file import module_of
from jaxtune.data.errors import known
from jaxtune.display.errors import UserError
from jaxtune.training.objectives import CROSS_ENTROPY, Objective, as_objective

FUNCTION = "get_objective"
GROUP = "jaxtune.objectives"  # entry points of installed packages, each a function as in a file


def objective_of(name: str) -> Objective:
    """Returns what `get_objective()` of a file or of an entry point returns.

    An empty name stands for cross-entropy. Raises UserError if there is no such function, it
    fails, or what it returns is no objective.
    """
    if not name:
        return CROSS_ENTROPY
    try:
        return as_objective(_maker(name)())
    except UserError as error:
        raise UserError(f"{error}; {FUNCTION}() of {name} returned it") from None
    except Exception as error:
        raise UserError(
            f"objective: {FUNCTION}() of {name} failed: {type(error).__name__}: {error}"
        ) from error


def objective_files(name: str) -> list[Path]:
    """Returns the file that an objective is defined in; none for cross-entropy."""
    if not name:
        return []
    return [Path(module_of(name).__file__ if name.endswith(".py") else getfile(_maker(name)))]


def _maker(name: str) -> Callable[[], Any]:
    if not name.endswith(".py"):
        installed = entry_points(group=GROUP)
        among = [*sorted(installed.names), f"a Python file with {FUNCTION}()"]
        (entry,) = installed.select(name=known("objective", name, among))
        return entry.load()
    made = getattr(module_of(name), FUNCTION, None)
    if not callable(made):
        raise UserError(
            f"objective: {name} has no {FUNCTION}(); define a function of that name that returns "
            "an objective: a function of (forward, batch), or a flax.struct.dataclass"
        )
    return made
