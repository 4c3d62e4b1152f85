"""Config sections for the optimiser and the learning rate schedule."""

from dataclasses import dataclass
from typing import Literal

from jaxtune.config.fields import When, about
from jaxtune.config.training_sections import MANY
from jaxtune.config.values import Pattern

ADAM: When = ("name", ("adamw", "adamw8bit"))
ADAM_OR_LION: When = ("name", ("adamw", "adamw8bit", "lion"))


@dataclass(frozen=True)
class Optim:
    """The optimiser and its hyperparameters."""

    name: Literal["adamw", "adamw8bit", "sgd", "adafactor", "lion"] = about(
        "adamw",
        "optimiser; adamw8bit stores the moments in a quarter of the memory",
        also="optimizer",
    )
    lr: float = about(
        1e-4,
        "peak learning rate",
        least=0,
        most=1e6,
        usual="1e-5 to 1e-3 with adamw",
        also="learning_rate",
    )
    weight_decay: float = about(
        0.0,
        "decoupled weight decay: each step subtracts lr × weight_decay × weight",
        least=0,
        most=1e3,
        usual="0 to 0.1",
        also="wd",
    )
    b1: float = about(
        0.9,
        "decay rate of the first moment",
        least=0,
        most=0.9999,
        usual="0.9",
        when=ADAM_OR_LION,
        also="beta1 betas adam_beta1",
    )
    b2: float = about(
        0.999,
        "decay rate of the second moment; with lion, of the stored moment",
        least=0,
        most=0.999999,
        usual="0.95 to 0.999",
        when=ADAM_OR_LION,
        also="beta2 adam_beta2",
    )
    epsilon: float = about(
        1e-8,
        "added to the denominator of the update",
        least=1e-20,
        most=1,
        usual="1e-8 to 1e-6",
        when=ADAM,
        also="eps adam_epsilon",
    )
    momentum: float = about(
        0.0,
        "momentum of SGD",
        least=0,
        most=0.9999,
        usual="0 to 0.9",
        when=("name", ("sgd",)),
    )
    clip_norm: float | None = about(
        1.0,
        "maximum global gradient norm; larger gradients are scaled down; None: no clipping",
        least=1e-6,
        most=1e6,
        usual="0.1 to 1",
        also="max_grad_norm",
    )
    rates: tuple[tuple[Pattern, float], ...] = about(
        (),
        "learning rate factor of each leaf: that of the first matching pattern, or 1",
        least=0,
        most=1e3,
        usual="0 to 16",
    )
    decays: tuple[tuple[Pattern, float], ...] = about(
        (),
        "weight decay factor of each leaf: that of the first matching pattern, or 0 for norms and "
        "biases and 1 for all others",
        least=0,
        most=1e3,
        usual="0 or 1",
    )


@dataclass(frozen=True)
class Schedule:
    """The learning rate schedule: warmup, and the decay after it."""

    name: Literal["constant", "linear", "cosine", "wsd"] = about(
        "linear",
        "after warmup: constant, linear or cosine decay to 0, or constant with a decay at the end "
        "(wsd)",
        also="scheduler lr_scheduler lr_scheduler_type",
    )
    warmup: int | float = about(
        0,
        "linear warmup from 0: number of steps, or share of all steps",
        least=0,
        most=MANY,
        share=True,
        usual="0 to 0.1",
        also="warmup_steps warmup_ratio",
    )
    decay: int | float = about(
        0.1,
        "final decay of wsd: number of steps, or share of all steps",
        least=0,
        most=MANY,
        share=True,
        usual="0.1 to 0.2",
        when=("name", ("wsd",)),
    )
