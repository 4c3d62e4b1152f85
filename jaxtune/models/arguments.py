"""Checks of arguments that are easily mixed up, for the public functions that take them."""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from jaxtune.display.errors import UserError
from jaxtune.display.escapes import typed

BATCH = ("tokens", "positions", "segments", "valid", "causal", "where", "targets", "weights")


def check_model(model: Any) -> None:
    """Raises UserError unless an argument is a model."""
    if not isinstance(model, nn.Module):
        raise UserError(
            f"model is {typed(model)}; expected the first of what jaxtune.load returns: "
            "model, variables = jaxtune.load(path)"
        )


def check_variables(variables: Any) -> None:
    """Raises UserError unless an argument is a tree of variables."""
    if not isinstance(variables, Mapping) or "params" not in variables:
        found = f"{typed(variables)}"
        if isinstance(variables, Mapping):
            found = f"a dictionary with the keys {', '.join(map(str, variables)) or 'none'}"
        state = hasattr(type(variables), "variables") and not isinstance(variables, nn.Module)
        hint = "; pass its .variables" if state else ""
        raise UserError(
            f"variables is {found}; expected the second of what jaxtune.load returns, a "
            f"dictionary with 'params' and, with adapters, 'lora'{hint}"
        )


def check_batch(batch: Any) -> None:
    """Raises UserError unless an argument has the arrays of a batch."""
    if not hasattr(batch, "tokens"):
        raise UserError(
            f"batch is {typed(batch)}; expected a jaxtune.Batch, such as "
            f"jaxtune.collate(examples) makes, or any pytree with its attributes {', '.join(BATCH)}"
        )
