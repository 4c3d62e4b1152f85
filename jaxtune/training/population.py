"""Populations: train states that share frozen leaves, and are updated together by one program.

The members of a population differ in numbers alone: hyperparameters, initial values, seeds, and the
ranks of their adapters. Their arrays are stacked along a leading axis of M members. The step is
that of one state, vectorised over this axis with the frozen leaves left out: a product with a
frozen weight is one product with the rows of all members side by side, and a quantised weight is
dequantised once for all.
"""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from jaxtune import tree
from jaxtune.adapters import lora
from jaxtune.display.errors import UserError
from jaxtune.display.escapes import typed
from jaxtune.models import host
from jaxtune.models.arguments import check_batch, check_model
from jaxtune.models.device import MEMBERS
from jaxtune.models.programs import program
from jaxtune.training.objectives import CROSS_ENTROPY, as_objective
from jaxtune.training.step import TrainState, compiled_eval, compiled_step

# Axes of the rank in the leaves of an adapter, and in the optimiser's arrays for these.
RANK = {"a": -1, "b": -2}
ADAPTER = re.compile(r"(.*/)?lora/.*/(?P<name>a|b)")


@struct.dataclass
class Population:
    """The states of M members."""

    states: TrainState  # leaves [M, ...]; `frozen` has the frozen leaves that members do not share
    shared: Any  # the frozen leaves that all members share, with None in place of the others
    ranks: tuple[int, ...] = struct.field(pytree_node=False)  # of the members; 0 without adapters

    def __len__(self) -> int:
        return len(self.ranks)

    @classmethod
    def of(cls, states: Sequence[TrainState]) -> "Population":
        """Stacks states into a population.

        Frozen leaves that are one array in all states are shared. Adapters of a lower rank than the
        highest are filled up with zeros, which stay zeros: neither half of such an adapter has a
        gradient where the other is zero. If some members have dropout, the others have that of 0.

        Args:
          states: States of the same model, with leaves of equal shapes but for the adapters' rank.

        Returns:
          Their population. Raises UserError if the states cannot be stacked.
        """
        if not states or not all(isinstance(state, TrainState) for state in states):
            found = ", ".join({type(state).__name__ for state in states}) or "none"
            raise UserError(f"states: found {found}; expected one jaxtune.TrainState or more")
        ranks = tuple(map(_rank, states))
        states = _alike_in_dropout(states)
        common = jax.tree.map(_one_array, *(state.frozen for state in states))
        parts = [tree.partition(state.frozen, common) for state in states]
        if large := [path for path in tree.flatten(parts[0][1]) if path.startswith("params/")]:
            raise UserError(
                f"members of a population share their frozen weights, but {large[0]} is another "
                "array in each: make their states from the same variables"
            )
        alone = [
            _resized(state.replace(frozen=own), max(ranks))
            for state, (_, own) in zip(states, parts, strict=True)
        ]
        _check(alone)
        where = _beside(alone[0])
        return cls(jax.jit(_stacked, out_shardings=where)(*alone), parts[0][0], ranks)

    @classmethod
    def described(cls, state: TrainState, frozen: Any, count: int) -> "Population":
        """Returns the shapes of a population of `count` members that are like one another.

        Args:
          state: Shapes, dtypes and shardings of a member's state, without `frozen`.
          frozen: Those of its frozen leaves, of which the weights, under `params/`, are shared.
          count: Number of members.
        """
        weights = tree.map_with_path(lambda path, _: path.startswith("params/"), frozen)
        shared, own = tree.partition(frozen, weights)
        state = state.replace(frozen=own)
        states = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(
                (count, *leaf.shape), leaf.dtype, sharding=sharding
            ),
            state,
            _beside(state),
        )
        return cls(states, shared, (_rank(state),) * count)

    def member(self, index: int) -> TrainState:
        """Returns the state of a member, as if it had trained alone."""
        state = _taken(self.states, index, self.ranks[index])
        return state.replace(frozen=tree.combine(state.frozen, self.shared))

    def without(self, gone: Sequence[int]) -> "Population":
        """Returns the population without some members; its programs are smaller ones."""
        kept = [index for index in range(len(self)) if index not in gone]
        ranks = tuple(self.ranks[index] for index in kept)
        states = jax.tree.map(lambda leaf: leaf[jnp.array(kept)], self.states)
        return self.replace(states=states, ranks=ranks)


def population_step(
    model,
    optimizer,
    population: Population,
    batch,
    *,
    own: bool = False,
    objective=CROSS_ENTROPY,
) -> tuple[Population, dict[str, jax.Array]]:
    """Runs one update of every member; donates the states, but not the frozen leaves they share.

    Args:
      model: The model.
      optimizer: As in `train_step`; the members' hyperparameters are in their states.
      population: The members before the step.
      batch: As in `train_step`, for all members; with `own`, every array has a leading axis of
        members.
      own: Whether each member has a batch of its own.
      objective: As in `train_step`, for all members.

    Returns:
      The members after the step, and the metrics of `train_step`, each float32[M].
    """
    check_model(model)
    check_batch(batch)
    _check_population(population)
    states, metrics = compiled_population_step(
        model,
        optimizer,
        population.states,
        host.extracted(population.shared, batch.tokens),
        batch,
        own,
        as_objective(objective),
    )
    return population.replace(states=states), metrics


def population_losses(
    model, population: Population, batch, *, objective=CROSS_ENTROPY
) -> tuple[jax.Array, jax.Array]:  # float32[M], float32[]
    """Returns what `eval_step` returns of a batch, for every member: sums of losses and weights."""
    check_model(model)
    check_batch(batch)
    _check_population(population)
    sums = population_sums(model, population, batch, as_objective(objective))
    return sums["loss"], sums["weight"][0]


def population_sums(
    model, population: Population, batch, objective=CROSS_ENTROPY
) -> dict[str, jax.Array]:
    """Returns what `compiled_losses` does, for members whose embedding may be on the host."""
    shared = host.extracted(population.shared, batch.tokens)
    return compiled_losses(model, population.states, shared, batch, objective)


def _check_population(population: Any) -> None:
    """Raises UserError unless an argument is a population."""
    if not isinstance(population, Population):
        raise UserError(
            f"population is {typed(population)}; expected what "
            "jaxtune.Population.of(states) returns"
        )


@program(static_argnums=(0, 1, 5), donate_argnums=2)
def compiled_population_step(
    model, optimizer, states, shared, batch, own: bool, objective=CROSS_ENTROPY
):
    """Computes `population_step` under jit, where shared leaves are an input but not an output."""

    def one(state: TrainState, batch):
        frozen = tree.combine(state.frozen, shared)
        moving = state.replace(frozen=None)
        moving, metrics = compiled_step(model, optimizer, moving, frozen, batch, objective)
        return moving.replace(frozen=state.frozen), metrics

    axes = (0, 0 if own else None)
    return jax.vmap(one, in_axes=axes, axis_name=MEMBERS)(states, batch)


@program(static_argnums=0)
def compiled_losses(model, states, shared, batch, objective=CROSS_ENTROPY):
    """Returns what `compiled_eval` returns, for every member: sums over a batch, float32[M]."""

    def one(state: TrainState):
        frozen = tree.combine(state.frozen, shared)
        return compiled_eval(model, tree.combine(state.trainable, frozen), batch, objective)

    return jax.vmap(one, axis_name=MEMBERS)(states)


def _stacked(*states: TrainState) -> TrainState:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


@partial(jax.jit, static_argnums=2)
def _taken(states: TrainState, index: int, rank: int) -> TrainState:
    """Returns the state of a member with its own rank, without what it shares."""
    return _resized(jax.tree.map(lambda leaf: leaf[index], states), rank)


def _beside(state: TrainState) -> Any:
    """Returns shardings of stacked leaves: those of a member's, with whole stacks everywhere."""

    def stacked(leaf: jax.Array) -> NamedSharding | None:
        where = getattr(leaf, "sharding", None)
        if not isinstance(where, NamedSharding):
            return None  # left to the compiler
        return NamedSharding(where.mesh, PartitionSpec(None, *where.spec))

    return jax.tree.map(stacked, state)


def _alike_in_dropout(states: Sequence[TrainState]) -> Sequence[TrainState]:
    """Returns states whose adapters all have a dropout, which may be 0, if some have one."""

    def filled(adapter: lora.Lora) -> lora.Lora:
        share = jnp.zeros_like(adapter.scale) if adapter.dropout is None else adapter.dropout
        return adapter.replace(dropout=share)

    held = [lora.adapters(state.frozen) for state in states]
    if all(each.dropout is None for adapters in held for each in adapters.values()):
        return states
    full = [{path: filled(each) for path, each in adapters.items()} for adapters in held]
    return [
        state.replace(frozen={**state.frozen, "lora": tree.unflatten(adapters)})
        for state, adapters in zip(states, full, strict=True)
    ]


def _one_array(first: Any, *others: Any) -> bool:
    """Returns whether leaves are one array, or if the host holds them, views of one."""
    if isinstance(first, np.ndarray):
        return all(np.may_share_memory(first, np.asarray(each)) for each in others)
    return all(each is first for each in others)


def _rank(state: TrainState) -> int:
    """Returns the highest rank of a state's adapters, 0 without adapters."""
    found = (
        (ADAPTER.fullmatch(path), leaf) for path, leaf in tree.flatten(state.trainable).items()
    )
    return max((leaf.shape[RANK[match["name"]]] for match, leaf in found if match), default=0)


def _resized(state: TrainState, rank: int) -> TrainState:
    """Returns a state with adapters of another rank: cut, or filled up with zeros."""
    now = _rank(state)
    if rank == now:
        return state

    def resize(path: str, leaf: jax.Array) -> jax.Array:
        match = ADAPTER.fullmatch(path)
        if not match:
            return leaf
        axis = RANK[match["name"]]
        if leaf.ndim < 2 or leaf.shape[axis] != now:
            raise UserError(
                f"members of ranks {now} and {rank} cannot be stacked: {path} is not of the shape "
                "of its adapter; train members of one rank together, or use another optimizer"
            )
        if rank < now:
            return jax.lax.slice_in_dim(leaf, 0, rank, axis=axis % leaf.ndim)
        widths = [(0, 0)] * leaf.ndim
        widths[axis] = (0, rank - now)
        return jnp.pad(leaf, widths)

    trainable, opt_state = (
        tree.map_with_path(resize, each) for each in (state.trainable, state.opt_state)
    )
    return state.replace(trainable=trainable, opt_state=opt_state)


def _check(states: Sequence[TrainState]) -> None:
    """Raises UserError unless the leaves of all states have the same paths, shapes and dtypes."""
    first, *others = ({p: (x.shape, x.dtype) for p, x in tree.flatten(s).items()} for s in states)
    for number, other in enumerate(others, start=1):
        for path in first | other:
            if first.get(path) != other.get(path):
                raise UserError(
                    f"member {number} of a population does not match member 0 in {path}: "
                    f"{other.get(path, 'missing')}, expected {first.get(path, 'missing')}"
                )
