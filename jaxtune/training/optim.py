"""Optimisers and schedules whose numbers are arrays in the state, so that a sweep compiles once.

An `Optimizer` says what is computed; `hyper`, carried by the train state, says with which numbers.
Two optimisers that differ in numbers alone are equal, and share one compiled step.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxtune import tree
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
    "decay_steps": 0,  # of the last part of warmup-stable-decay
    "total_steps": 1,
}
# What each computes from gradients; rate, decay and sign are applied alike to all.
DIRECTIONS: dict[str, Callable[[Hyper], optax.GradientTransformation]] = {
    "adamw": lambda hyper: optax.scale_by_adam(hyper["b1"], hyper["b2"], hyper["epsilon"]),
    "adamw8bit": lambda hyper: scale_by_adam8(hyper["b1"], hyper["b2"], hyper["epsilon"]),
    "sgd": lambda hyper: optax.trace(hyper["momentum"]),
    "lion": lambda hyper: optax.scale_by_lion(hyper["b1"], hyper["b2"]),
    "adafactor": lambda hyper: optax.chain(
        optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)
    ),
}
# Norm scales and biases are not pulled to zero; an adapter's matrices are, `b` too.
DECAYS: tree.Rules = (
    (r"lora/.*/magnitude", 0.0),
    (r"lora/.*", 1.0),
    (r".*/(scale|b)", 0.0),
    (r".*", 1.0),
)


@dataclass(frozen=True)
class Optimizer:
    """One of `DIRECTIONS` under one of `SCHEDULES`; keywords other than these are its numbers.

    `rates` and `decays` multiply learning rate and weight decay leaf by leaf: ordered
    (pattern, factor) over the paths of variables.
    """

    name: str = "adamw"
    schedule: str = "constant"
    rates: tuple[tuple[str, float], ...] = ((r".*", 1.0),)
    decays: tuple[tuple[str, float], ...] = DECAYS
    hyper: Hyper = field(default_factory=lambda: DEFAULTS, compare=False)

    def init(self, params: Any) -> Any:
        """The state of a fresh optimiser."""
        return DIRECTIONS[self.name](DEFAULTS).init(params)

    def update(self, gradients: Any, state: Any, params: Any, *, hyper: Hyper, step: jax.Array):
        """What to add to the parameters, and the state after it."""
        gradients = _clipped(gradients, hyper["clip_norm"])
        direction, state = DIRECTIONS[self.name](hyper).update(gradients, state, params)
        rate = hyper["lr"] * SCHEDULES[self.schedule](step, hyper)
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
    **numbers: float,
) -> Optimizer:
    """An optimiser by name, with the numbers that a state made for it begins with."""
    for what, given, known in (
        ("optimizer", name, DIRECTIONS),
        ("schedule", schedule, SCHEDULES),
        *(("number", number, DEFAULTS) for number in numbers),
    ):
        if given not in known:
            raise ValueError(f"{what} {given!r} is not known: expected one of {', '.join(known)}")
    rates = (*(tuple(rule) for rule in rates), (r".*", 1.0))
    decays = tuple(tuple(rule) for rule in decays)
    return Optimizer(name, schedule, rates, decays, DEFAULTS | numbers)


def _clipped(gradients: Any, norm: jax.Array) -> Any:
    """Gradients whose norm all together is `norm` at most, as torch does it."""
    factor = jnp.minimum(1.0, norm / (optax.global_norm(gradients) + 1e-6))
    return jax.tree.map(lambda gradient: gradient * factor, gradients)


# Schedules: the share of the learning rate at a step, with a linear warm-up from 0. Steps count
# from 0 and divisions from 1, as in transformers.


def _warm(step: jax.Array, hyper: Hyper, after: jax.Array) -> jax.Array:
    warming = step / jnp.maximum(1, hyper["warmup_steps"])
    return jnp.where(step < hyper["warmup_steps"], warming, after)


def _progress(step: jax.Array, hyper: Hyper) -> jax.Array:
    """0 at the end of the warm-up, 1 at the end of training."""
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
