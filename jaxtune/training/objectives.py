"""Objectives: what a training step minimises, computed from a forward pass over a batch.

An objective is a callable `objective(forward, batch)` that returns a sum of losses over a batch and
sums of metrics, and has a method `weight(batch)`: the sum of weights that these sums are divided
by, over all micro-batches of a step. It is a pytree, such as a `flax.struct.dataclass`: its arrays,
for example the weights of a teacher, are arguments of the compiled step, and its other fields are
compiled into it. A plain function is an objective whose weight is that of the batch's scored
positions. A class attribute `METRICS` may tell of metrics, by name, whether more is better: these
may choose the best checkpoint of a run.

Axes beyond the decoder's: K scored positions of a row.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import struct

from jaxtune import tree
from jaxtune.display.errors import UserError
from jaxtune.models import forward as passes
from jaxtune.models.arguments import check_batch, check_model, check_variables
from jaxtune.models.layout import arrange
from jaxtune.models.programs import program
from jaxtune.training import loss

HEAD = re.compile(r"\w+/(.*/)?(embed|head)/.*")  # the leaves that logits are computed from

RESERVED = ("loss", "weight", "gradient_norm", "lr")  # what the step itself returns
Sums = tuple[jax.Array, Mapping[str, jax.Array]]  # of losses, and of metrics by name


class Objective(Protocol):
    """What a training step minimises; see the module."""

    def weight(self, batch: Any) -> jax.Array:  # float32[]
        """Returns the sum of weights of a batch, or of several micro-batches [A, B, …]."""

    def __call__(self, forward: "Forward", batch: Any) -> Sums:
        """Returns the weighted sum of losses of a batch, and the sums of metrics by name."""


@dataclass(frozen=True)
class Forward:
    """A model with its variables, whose losses and log-probabilities an objective asks for.

    Logits are computed for the scored positions of a batch only, some of them at a time.

    Attributes:
      model: The model.
      trainable: Variables that train, or all variables, or None if none trains.
      frozen: Variables that do not train; empty if `trainable` has all of them.
      key: Random key of dropout; None turns dropout off.
    """

    model: Any
    trainable: Any
    frozen: Any
    key: jax.Array | None = None

    @cached_property
    def variables(self) -> Mapping:
        """All variables, for `model.apply`."""
        if self.trainable is None:
            return self.frozen
        return tree.combine(self.trainable, self.frozen) if self.frozen else self.trainable

    @property
    def base(self) -> "Forward":
        """The forward pass of the base model: without adapters, dropout and gradients."""
        plain = {name: each for name, each in self.variables.items() if name != "lora"}
        return of(self.model, plain)

    def hidden(self, batch: Any) -> jax.Array:  # [B, K, D]
        """Returns the last hidden states at the scored positions, after the final norm.

        `batch` is one without micro-batches, or any object with the fields of `Batch`; `images` may
        be missing.
        """
        rngs = {} if self.key is None else {"dropout": self.key}
        given = (batch.positions, batch.segments, batch.valid, batch.causal)
        return passes.hidden_at(
            self.model,
            self.variables,
            batch.tokens,
            arrange(batch.tokens.shape, *given),
            batch.where,
            images=getattr(batch, "images", None),  # a custom batch need not have the field
            rngs=rngs,
        )

    def cross_entropy(
        self, batch: Any, hidden: jax.Array | None = None, plain: bool = False
    ) -> jax.Array:  # float32[]
        """Returns the sum of weight × cross-entropy over the scored positions.

        `hidden` is what `hidden(batch)` returned, if that is at hand. Where `plain` is true, JAX
        can differentiate it in every mode, such as for Hessian-vector products; by default it
        brings its own gradient, which is faster.
        """
        scored = self.hidden(batch) if hidden is None else hidden
        flat = (scored.reshape(-1, scored.shape[-1]), batch.targets.ravel(), batch.weights.ravel())
        computed = loss.plain_cross_entropy if plain else loss.cross_entropy
        return computed(self.model, *self._head, *flat)

    def log_probs(self, batch: Any, hidden: jax.Array | None = None) -> jax.Array:  # float32[B, K]
        """Returns the log-probability of each target; those of padding mean nothing.

        `hidden` is what `hidden(batch)` returned, if that is at hand. Unlike those of
        `cross_entropy`, its gradients take a second pass over the vocabulary, since they depend on
        what the objective makes of the log-probabilities.
        """
        scored = self.hidden(batch) if hidden is None else hidden
        flat = scored.reshape(-1, scored.shape[-1])
        found = loss.log_probs(self.model, *self._head, flat, batch.targets.ravel())
        return found.reshape(batch.targets.shape)

    def logits(self, hidden: jax.Array) -> jax.Array:  # [..., D] -> float32[..., V]
        """Returns the logits of hidden states, of which there must be few."""
        return passes.logits(self.model, self.variables, hidden)

    @property
    def _head(self) -> tuple[dict, dict]:
        """The leaves of the head that train, and those that do not, by path."""
        return _only_head(self.trainable), _only_head(self.frozen)


def of(model: Any, variables: Mapping) -> Forward:
    """Returns the forward pass of a model without gradients, such as a teacher's."""
    return Forward(model, None, jax.lax.stop_gradient(variables))


@struct.dataclass
class CrossEntropy:
    """The mean cross-entropy over the scored positions, weighted by the batch's weights."""

    def weight(self, batch: Any) -> jax.Array:
        """Returns the sum of the batch's weights."""
        return batch.weights.sum()

    def __call__(self, forward: Forward, batch: Any) -> Sums:
        """Returns the weighted sum of the cross-entropy."""
        return forward.cross_entropy(batch), {}


CROSS_ENTROPY = CrossEntropy()


@struct.dataclass
class _Function(CrossEntropy):
    """A function as an objective, with the weight of `CrossEntropy`."""

    compute: Callable[[Forward, Any], Any] = struct.field(pytree_node=False)

    def __call__(self, forward: Forward, batch: Any) -> Sums:
        """Returns what the function computes."""
        return self.compute(forward, batch)


def log_probs(
    model, variables: Mapping, batch
) -> tuple[jax.Array, jax.Array]:  # float32[B], float32[B, K]
    """Returns log-probabilities of the scored tokens of a batch, in bounded memory.

    Args:
      model: The model.
      variables: Its variables.
      batch: A `Batch` of arrays [B, …]; one line for each sequence, not several packed.

    Returns:
      The log-probability of each sequence, and those of its tokens, 0 at padding. A token counts
      in full if its weight is above 0.
    """
    check_model(model)
    check_variables(variables)
    check_batch(batch)
    return _log_probs(model, variables, batch)


@program(static_argnums=0)
def _log_probs(model, variables: Mapping, batch) -> tuple[jax.Array, jax.Array]:
    found = jnp.where(batch.weights > 0, of(model, variables).log_probs(batch), 0)
    return found.sum(-1), found


def as_objective(given: Any) -> Objective:
    """Returns an objective: what is given, or a plain function as one.

    Raises UserError for anything else.
    """
    leaf = jax.tree.leaves(given) == [given]  # a class that JAX does not know as a pytree
    if callable(given) and leaf:
        given = _Function(given)
    if not callable(given) or not hasattr(given, "weight"):
        raise UserError(
            f"objective: found {type(given).__name__}; expected a function of (forward, batch), or "
            "a flax.struct.dataclass with __call__(forward, batch) and weight(batch)"
        )
    return given


def computed(objective: Objective, forward: Forward, batch: Any) -> Sums:
    """Returns what an objective computes; it may leave out the metrics.

    Raises UserError unless it is a scalar loss, with scalar metrics of names of their own.
    """
    found = objective(forward, batch)
    loss, metrics = found if isinstance(found, tuple) and len(found) == 2 else (found, {})
    named = metrics if isinstance(metrics, Mapping) else {"metrics": metrics}
    if taken := [name for name in named if name in RESERVED]:
        raise UserError(f"objective: a metric may not be called {taken[0]!r}; choose another name")
    sums = {"loss": loss, **named}
    wrong = [name for name, each in sums.items() if getattr(each, "shape", None) != ()]
    if wrong:
        name = wrong[0]
        raise UserError(
            f"objective: {name} is {_described(sums[name])}; expected a sum over the batch, as a "
            "scalar array, and metrics as a dictionary of such: return loss, {'name': metric}"
        )
    return loss, metrics


def _described(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return f"a {type(value).__name__}" if shape is None else f"an array of shape {shape}"


def _only_head(part: Any) -> dict[str, jax.Array]:
    return {path: leaf for path, leaf in tree.flatten(part).items() if HEAD.fullmatch(path)}
