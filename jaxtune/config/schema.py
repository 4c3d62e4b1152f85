"""The schema of run configs: `Config`, whose sections are dataclasses of documented fields."""

import math
from dataclasses import dataclass

from jaxtune.config.fields import Schema, about
from jaxtune.config.optim_sections import Optim, Schedule
from jaxtune.config.run_sections import Checkpoint, Eval, Generate, Hub, Log, Mesh
from jaxtune.config.training_sections import MANY, Batch, Data, Model, Trainable
from jaxtune.config.values import Place


@dataclass(frozen=True)
class Config:
    """Settings of one fine-tuning run."""

    steps: int | None = about(
        None,
        "number of optimiser steps; None: derived from epochs",
        least=1,
        most=MANY,
        usual="100 to 100,000",
        also="max_steps",
    )
    epochs: float | None = about(
        None,
        "passes over the training rows; None: 1, unless steps is set",
        least=1e-6,
        most=1e6,
        usual="1 to 10",
        also="num_train_epochs",
    )
    seed: int = about(
        0,
        "random seed of row order, adapter initialisation and dropout",
        least=0,
        most=2**32 - 1,  # JAX takes the lower 32 bits of a seed
    )
    objective: Place = about(
        "",
        "what training minimises: a Python file whose get_objective() returns it, or the name of "
        "an installed package's; empty: cross-entropy",
    )
    model: Model = Model()
    data: Data = Data()
    trainable: Trainable = Trainable()
    optim: Optim = Optim()
    schedule: Schedule = Schedule()
    batch: Batch = Batch()
    eval: Eval = Eval()
    generate: Generate = Generate()
    checkpoint: Checkpoint = Checkpoint()
    log: Log = Log()
    hub: Hub = Hub()
    mesh: Mesh = Mesh()


SCHEMA = Schema(Config)
SECTIONS, FIELDS = SCHEMA.sections, SCHEMA.fields  # by dotted key


def counted(amount: int | float, whole: int) -> int:
    """Converts an amount, a count or a share of `whole`, to a count.

    An int is returned as it is; a float is a share, rounded up to a whole number as transformers
    does for its warmup ratio.
    """
    return math.ceil(amount * whole) if isinstance(amount, float) else amount
