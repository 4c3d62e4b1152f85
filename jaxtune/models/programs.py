"""The doors to a model's numerics: what its products and programs are computed with.

A model says by its fields `precision` and `deterministic` how it is to be computed. Both take
effect while a program is traced and compiled, so that no function in between passes them on.
Products outside of these doors, which need no model, name their precision themselves.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import NamedSharding

from jaxtune.quant import precision

# What XLA compiles for GPUs with, so that a program returns the same bits every time: scatters add
# in one order, and no kernel is chosen by its time.
DETERMINISTIC: Mapping[str, Any] = {"xla_gpu_deterministic_ops": True}


def in_precision(function: Callable) -> Callable:
    """Returns a function whose first argument is a model, traced in the model's precision."""

    @functools.wraps(function)
    def traced(model, *given, **named):
        with rule(model).entered():
            return function(model, *given, **named)

    return traced


def rule(model: nn.Module) -> precision.Rule:
    """Returns the rule for products of a model; JAX's defaults for a module of another kind."""
    if not isinstance(model, Model):
        return precision.RULES["default"]
    return precision.RULES[precision.chosen(model.precision, model.dtype)]


class Model(nn.Module):
    """A model whose products have its own precision, also where a user calls `apply` directly.

    Subclasses have the fields `dtype`, `precision` and `deterministic`.
    """

    @nn.nowrap
    def apply(self, *given: Any, **named: Any) -> Any:
        """Calls a method with variables, as `flax.linen.Module.apply` does."""
        with rule(self).entered():
            return super().apply(*given, **named)


class Program:
    """A jitted function whose first argument is a model, which it is static in.

    Its products have the precision of the model. That of a deterministic model is compiled with
    `DETERMINISTIC` for GPUs. It has all attributes of what `jax.jit` returns.
    """

    def __init__(self, function: Callable, **how: Any):
        functools.update_wrapper(self, function)
        traced = in_precision(function)
        self._plain = jax.jit(traced, **how)
        self._same = jax.jit(traced, **how, compiler_options=DETERMINISTIC)

    def __call__(self, model: nn.Module, *given: Any, **named: Any) -> Any:
        return self._for(model, given, named)(model, *given, **named)

    def trace(self, model: nn.Module, *given: Any, **named: Any) -> Any:
        """Traces the function for arguments or their shapes, as `jax.jit(…).trace` does."""
        return self._for(model, given, named).trace(model, *given, **named)

    def lower(self, model: nn.Module, *given: Any, **named: Any) -> Any:
        """Lowers the function for arguments or their shapes, as `jax.jit(…).lower` does."""
        return self._for(model, given, named).lower(model, *given, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_plain"], name)

    def _for(self, model: nn.Module, *arguments: Any) -> Any:
        """Returns the jitted function with the compiler's options for a model and arguments."""
        if not getattr(model, "deterministic", False):
            return self._plain
        leaves = jax.tree.leaves(arguments)
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return self._plain  # the options are those of the outermost program
        return self._same if _platform(leaves) in precision.GPUS else self._plain


def program(**how: Any) -> Callable[[Callable], Program]:
    """Returns a decorator that makes a `Program`; the arguments are those of `jax.jit`."""
    return functools.partial(Program, **how)


def _platform(leaves: list) -> str:
    """Returns the platform that arrays, or their shapes, are on."""
    for leaf in leaves:
        where = getattr(leaf, "sharding", None)
        if isinstance(where, NamedSharding):
            return where.mesh.devices.flat[0].platform
    return jax.default_backend()
