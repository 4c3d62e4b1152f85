"""Optimisers and schedules whose hyperparameters are arrays, so that a sweep compiles once.

An `Optimizer` defines what is computed; the hyperparameter values are in `hyper`, which the train
state carries. Optimisers that differ only in these values are equal and share one compiled step.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxtune import tree
from jaxtune.display.errors import UserError
from jaxtune.training.adam8 import scale_by_adam8

Hyper = Mapping[str, Any]
Schedule = Callable[[jax.Array, Hyper], jax.Array]

DEFAULTS = {
    "lr": 1e-3,
    "weight_decay": 0.0,
    "b1": 0.9,
    "b2": 0.999,
    "epsilon": 1e-8,
    "momentum": 0.0,
    "clip_norm": jnp.inf,
    "warmup_steps": 0,
    "decay_steps": 0,  # length of the final decay of warmup-stable-decay
    "total_steps": 1,
}
# The update direction of each optimiser. Learning rate, weight decay and sign are applied to all of
# them in the same way.
DIRECTIONS: dict[str, Callable[[Hyper], optax.GradientTransformation]] = {
    "adamw": lambda hyper: optax.scale_by_adam(hyper["b1"], hyper["b2"], hyper["epsilon"]),
    "adamw8bit": lambda hyper: scale_by_adam8(hyper["b1"], hyper["b2"], hyper["epsilon"]),
    "sgd": lambda hyper: optax.trace(hyper["momentum"]),
    "lion": lambda hyper: optax.scale_by_lion(hyper["b1"], hyper["b2"]),
    "adafactor": lambda hyper: optax.chain(
        optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)
    ),
}
# Optimisers whose arrays all have the shape of the parameter, or none.
ALIKE = ("adamw", "sgd", "lion")
# Weight decay skips norm scales, biases and DoRA magnitudes. It applies to both matrices of an
# adapter, including `b`, which is no bias.
DECAYS: tree.Rules = (
    (r"lora/.*/magnitude", 0.0),
    (r"lora/.*", 1.0),
    (r".*/(scale|b)", 0.0),
    (r".*", 1.0),
)


@dataclass(frozen=True)
class Optimizer:
    """An update direction from `DIRECTIONS` with a learning-rate schedule from `SCHEDULES`.

    `rates` and `decays` are ordered (pattern, factor) over the paths of variables; the factors
    multiply learning rate and weight decay leaf by leaf. `hyper` holds initial hyperparameters and
    does not count in comparisons.
    """

    name: str = "adamw"
    schedule: str = "constant"
    rates: tuple[tuple[str, float], ...] = ((r".*", 1.0),)
    decays: tuple[tuple[str, float], ...] = DECAYS
    hyper: Hyper = field(default_factory=lambda: DEFAULTS, compare=False)

    def init(self, params: Any) -> Any:
        """Returns the optimiser state before the first step."""
        return DIRECTIONS[self.name](DEFAULTS).init(params)

    def rate(self, hyper: Hyper, step: jax.Array) -> jax.Array:
        """Returns the scheduled learning rate of a step, counted from 0, before any rule."""
        return hyper["lr"] * SCHEDULES[self.schedule](step, hyper)

    def update(self, gradients: Any, state: Any, params: Any, *, hyper: Hyper, step: jax.Array):
        """Returns the updates to add to the parameters, and the new optimiser state.

        Args:
          gradients: Gradients, in the structure of `params`.
          state: Optimiser state before the step.
          params: Parameters before the step, for weight decay and for the paths of the rules.
          hyper: Hyperparameters by name, as in `DEFAULTS`.
          step: Number of the step, from 0, for the schedule.

        Returns:
          (updates, state) as in optax.
        """
        gradients = _clipped(gradients, hyper["clip_norm"])
        direction, state = DIRECTIONS[self.name](hyper).update(gradients, state, params)
        rate = self.rate(hyper, step)
        rates = tree.select(params, self.rates, unused="allow")
        decays = tree.select(params, self.decays, unused="allow")

        def change(direction, leaf, factor, decayed):
            return -rate * factor * (direction + hyper["weight_decay"] * decayed * leaf)

        return jax.tree.map(change, direction, params, rates, decays), state


def optimizer(
    name: str = "adamw",
    schedule: str = "constant",
    *,
    rates: tree.Rules = (),
    decays: tree.Rules = DECAYS,
    **hyperparameters: float,
) -> Optimizer:
    """Returns an optimiser by name.

    Args:
      name: One of `DIRECTIONS`.
      schedule: One of `SCHEDULES`.
      rates: Rules of learning-rate factors over paths of variables; 1 where no rule matches.
      decays: Rules of weight-decay factors over paths of variables.
      **hyperparameters: Values that differ from `DEFAULTS`; a train state starts with them.

    Returns:
      The optimiser. Raises ValueError for a name, schedule or hyperparameter that is not known.
    """
    for what, given, known in (
        ("optimizer", name, DIRECTIONS),
        ("schedule", schedule, SCHEDULES),
        *(("hyperparameter", each, DEFAULTS) for each in hyperparameters),
    ):
        if given not in known:
            raise UserError(f"unknown {what} {given!r}: expected one of {', '.join(known)}")
    rates = (*(tuple(rule) for rule in rates), (r".*", 1.0))
    decays = tuple(tuple(rule) for rule in decays)
    return Optimizer(name, schedule, rates, decays, DEFAULTS | hyperparameters)


def _clipped(gradients: Any, norm: jax.Array) -> Any:
    """Scales gradients to a global norm of at most `norm`, with the epsilon that torch uses."""
    factor = jnp.minimum(1.0, norm / (optax.global_norm(gradients) + 1e-6))
    return jax.tree.map(lambda gradient: gradient * factor, gradients)


# Schedules return the factor of the learning rate at a step, after a linear warm-up from 0. Steps
# count from 0 and divisors are at least 1, as in transformers.


def _warm(step: jax.Array, hyper: Hyper, after: jax.Array) -> jax.Array:
    warming = step / jnp.maximum(1, hyper["warmup_steps"])
    return jnp.where(step < hyper["warmup_steps"], warming, after)


def _progress(step: jax.Array, hyper: Hyper) -> jax.Array:
    """Returns training progress, from 0 at the end of the warm-up to 1 at the end of training."""
    length = jnp.maximum(1, hyper["total_steps"] - hyper["warmup_steps"])
    return jnp.clip((step - hyper["warmup_steps"]) / length, 0, 1)


def _constant(step, hyper):
    return _warm(step, hyper, jnp.ones(()))


def _linear(step, hyper):
    return _warm(step, hyper, 1 - _progress(step, hyper))


def _cosine(step, hyper):
    return _warm(step, hyper, 0.5 * (1 + jnp.cos(jnp.pi * _progress(step, hyper))))


def _wsd(step, hyper):
    left = (hyper["total_steps"] - step) / jnp.maximum(1, hyper["decay_steps"])
    return _warm(step, hyper, jnp.clip(left, 0, 1))


SCHEDULES: dict[str, Schedule] = {
    "constant": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "wsd": _wsd,
}
