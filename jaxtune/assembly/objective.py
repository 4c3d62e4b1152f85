"""Reads the objective of a config from a Python file of the user."""

from jaxtune.config.python_file import module_of
from jaxtune.display.errors import UserError
from jaxtune.training.objective import Objective, as_objective

FUNCTION = "get_objective"


def objective_of(path: str) -> Objective:
    """Returns what `get_objective()` of a file returns.

    Raises UserError if there is no such function, it fails, or what it returns is no objective.
    """
    made = getattr(module_of(path), FUNCTION, None)
    if not callable(made):
        raise UserError(
            f"objective: {path} has no {FUNCTION}(); define a function of that name that returns "
            "an objective: a function of (forward, batch), or a flax.struct.dataclass"
        )
    try:
        return as_objective(made())
    except UserError as error:
        raise UserError(f"{error}; {FUNCTION}() of {path} returned it") from None
    except Exception as error:
        raise UserError(
            f"objective: {FUNCTION}() of {path} failed: {type(error).__name__}: {error}"
        ) from error
