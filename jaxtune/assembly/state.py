"""Selects the leaves that train, makes their optimiser, and builds the state at step 0."""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxtune import quant, sharding, tree
from jaxtune.adapters import lora
from jaxtune.config.optim_sections import Optim, Schedule
from jaxtune.config.schema import counted
from jaxtune.config.training_sections import Trainable
from jaxtune.training import optim
from jaxtune.training.step import TrainState, split

RULES: dict[str, tree.Rules] = {
    "lora": lora.TRAINABLE,
    "attention": ((r"params/(llm/)?layers/attn/.*", True), (r".*", False)),
    "full": ((r"params/.*", True), (r".*", False)),
}


def trainable_rules(given: Trainable) -> tree.Rules:
    """Returns the rules that are True for the leaves that train."""
    return given.rules if given.kind == "rules" else RULES[given.kind]


def make_optimizer(
    given: Optim, schedule: Schedule, lora_plus: float, total: int
) -> optim.Optimizer:
    """Returns the config's optimiser.

    Args:
      given: Section `optim`.
      schedule: Section `schedule`; its warmup and decay may be fractions of `total`.
      lora_plus: Learning rate of the adapters' B as a multiple of that of A (LoRA+).
      total: Number of steps of the run.

    Returns:
      The optimiser with its schedule.
    """
    return optim.optimizer(
        given.name,
        schedule.name,
        rates=(*given.rates, *([(r"lora/.*/b", lora_plus)] if lora_plus != 1 else [])),
        decays=(*given.decays, *optim.DECAYS),
        lr=given.lr,
        weight_decay=given.weight_decay,
        b1=given.b1,
        b2=given.b2,
        epsilon=given.epsilon,
        momentum=given.momentum,
        clip_norm=math.inf if given.clip_norm is None else given.clip_norm,
        warmup_steps=counted(schedule.warmup, total),
        decay_steps=counted(schedule.decay, total),
        total_steps=total,
    )


class Start:
    """The start of a run on a mesh: the leaves that train, the frozen ones, and the first state.

    Attributes:
      frozen: The frozen leaves; only their shapes, dtypes and shardings after `release`.
      selected: Shapes, dtypes and shardings of the leaves that train.
      shapes: Shapes, dtypes and shardings of the train state.
    """

    def __init__(
        self,
        given: Trainable,
        variables: dict,
        optimizer: optim.Optimizer,
        mesh: Mesh,
        seed: int,
    ):
        rules = trainable_rules(given)
        unused = "error" if given.kind == "rules" else "allow"
        self.mesh = mesh
        self._given, self.frozen = split(variables, rules, unused)
        self._static = (tuple(map(tuple, rules)), optimizer, mesh)
        self._numbers = (dict(optimizer.hyper), jax.random.key(seed))
        self.selected = sharding.described(self._given)
        rest = jax.tree.map(lambda leaf: None, self._given)
        shapes = jax.eval_shape(
            partial(_created, *self._static), self._given, rest, self.frozen, *self._numbers
        )
        self.shapes: TrainState = sharding.described(shapes, sharding.of_state(shapes, mesh))

    def release(self) -> None:
        """Drops the references to the frozen leaves and keeps their shapes."""
        self.frozen = sharding.described(self.frozen)

    def state(self) -> TrainState:
        """Returns the state at step 0; callable once, as it donates the leaves that train."""
        given, self._given = self._given, None
        reused = jax.tree.map(lambda leaf: leaf.dtype == np.float32, given)
        parts = tree.partition(given, reused)
        moving = _created(*self._static, *parts, self.frozen, *self._numbers)
        return moving.replace(frozen=self.frozen)

    def restored(self, moving: TrainState) -> TrainState:
        """Returns the state of a run checkpoint, with the config's current hyperparameters."""
        self._given = None
        hyper = {
            name: jax.device_put(np.float32(self._numbers[0][name]), leaf.sharding)
            for name, leaf in self.shapes.hyper.items()
        }
        return moving.replace(frozen=self.frozen, hyper=hyper)


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def _created(
    rules: tree.Rules,
    optimizer: optim.Optimizer,
    mesh: Mesh,
    reused: dict,  # float32 leaves that train; their memory is donated to the state
    rest: dict,  # leaves that train and have another dtype
    frozen: dict,
    hyper: dict,
    rng: jax.Array,
) -> TrainState:
    """Returns the state at step 0 without its frozen leaves, sharded over the mesh."""
    state = TrainState.create(
        tree.combine(reused, rest, frozen),
        trainable=rules,
        optimizer=optimizer,
        hyper=hyper,
        rng=rng,
    ).replace(frozen=None)
    return jax.lax.with_sharding_constraint(state, sharding.of_state(state, mesh))


def parameters(leaves: Any) -> int:
    """Returns the number of parameters in a tree; a quantised weight counts by its full shape."""
    found = jax.tree.leaves(leaves, is_leaf=quant.is_quantized)
    return sum(math.prod(leaf.shape) for leaf in found)


def trained_leaves(selected: dict, mesh: Mesh) -> Iterator[dict[str, str]]:
    """Yields a table row, as {heading: text}, for each leaf that trains."""
    for path, leaf in tree.flatten(selected).items():
        where = leaf.sharding.spec if isinstance(leaf.sharding, NamedSharding) else ()
        yield {
            "leaf": path,
            "shape": " × ".join(map(str, leaf.shape)) or "scalar",
            "parameters": f"{math.prod(leaf.shape):,}",
            "over": " ".join(str(axis) for axis in where if axis) if mesh.size > 1 else "",
        }
