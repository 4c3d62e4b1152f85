"""The training step: a loss over the scored positions only, and one jitted update.

Axes beyond the decoder's: A micro-batches, K scored positions of a row.
"""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxtune import quant, tree
from jaxtune.adapters import lora
from jaxtune.display.errors import UserError
from jaxtune.models.forward import hidden_at
from jaxtune.models.layout import arrange
from jaxtune.training.loss import cross_entropy
from jaxtune.training.optim import Optimizer

HEAD = re.compile(r"\w+/(.*/)?(embed|head)/.*")  # the leaves that logits are computed from


@struct.dataclass
class TrainState:
    """Everything that a training step updates, and the frozen variables that it reads."""

    step: jax.Array  # int32[], updates done
    trainable: Any  # variables, with None in place of frozen leaves
    frozen: Any  # variables, with None in place of trainable leaves
    opt_state: Any
    hyper: dict[str, jax.Array]  # hyperparameters of the optimiser by name, such as lr
    rng: jax.Array  # base random key; each step folds its number in

    @classmethod
    def create(
        cls,
        variables: Mapping,
        *,
        trainable: tree.Rules = lora.TRAINABLE,
        optimizer: Optimizer | optax.GradientTransformation,
        hyper: Mapping[str, float] | None = None,
        rng: jax.Array | None = None,
    ) -> "TrainState":
        """Returns the train state at step 0.

        Args:
          variables: Variables of the model, with adapters if these are to train.
          trainable: Rules over paths of variables, with value True for leaves that train; by
            default adapters only.
          optimizer: Optimiser whose state is initialised over the trainable leaves.
          hyper: Hyperparameters that override or add to those of the optimiser.
          rng: Base random key; by default `jax.random.key(0)`.

        Returns:
          A state whose trainable leaves are float32 copies.
        """
        selected, frozen = split(variables, trainable)
        # Trainable leaves are float32, so that small updates are not rounded away, and copies,
        # because the step donates the state's buffers.
        selected = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), selected)
        hyperparameters = {**getattr(optimizer, "hyper", {}), **(hyper or {})}
        state = cls(
            step=jnp.zeros((), jnp.int32),
            trainable=selected,
            frozen=None,
            opt_state=optimizer.init(selected),
            hyper={
                name: jnp.asarray(value, jnp.float32) for name, value in hyperparameters.items()
            },
            rng=jax.random.key(0) if rng is None else rng,
        )
        return _beside(variables, state).replace(frozen=frozen)

    @property
    def variables(self) -> dict:
        """Trainable and frozen variables as one tree, for `model.apply`."""
        return tree.combine(self.trainable, self.frozen)


def split(variables: Mapping, rules: tree.Rules, unused: str = "allow") -> tuple[Any, Any]:
    """Splits variables into (trainable, frozen) by rules over their paths.

    Raises ValueError if no leaf is selected, or a leaf that is quantised or not floating-point.
    """
    chosen = tree.select(variables, rules, unused=unused, is_leaf=quant.is_quantized)
    selected, frozen = tree.partition(variables, chosen, is_leaf=quant.is_quantized)
    _check_selection(quant.by_path(selected), quant.by_path(variables))
    return selected, frozen


def train_step(model, optimizer, state: TrainState, batch) -> tuple[TrainState, dict]:
    """Runs one compiled update; donates the state except for its frozen leaves.

    Args:
      model: The model.
      optimizer: An `Optimizer` or an optax transformation, whose update gets the extra arguments
        `hyper` and `step`.
      state: The state before the step; except for `frozen` it must not be used afterwards.
      batch: A `Batch` of arrays [B, …], or [A, B, …] for A micro-batches. Gradients are those of
        the whole batch, even if its rows and micro-batches have unequal weights.

    Returns:
      The state after the step, and metrics: "loss", the weighted mean over scored positions,
      "gradient_norm", before clipping, "weight", the sum of the batch's weights, and for an
      `Optimizer` "lr", the scheduled learning rate.
    """
    moving, metrics = compiled_step(
        model, optimizer, state.replace(frozen=None), state.frozen, batch
    )
    return moving.replace(frozen=state.frozen), metrics


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def compiled_step(model, optimizer, state: TrainState, frozen: Any, batch):
    """Computes `train_step` under jit, where frozen leaves are an input but not an output.

    Args:
      model: The model.
      optimizer: As in `train_step`.
      state: The state with `frozen` set to None; it is donated.
      frozen: The frozen leaves.
      batch: As in `train_step`.

    Returns:
      The state after the step, with `frozen` None, and the metrics of `train_step`.
    """
    parts = batch if batch.tokens.ndim == 3 else jax.tree.map(lambda leaf: leaf[None], batch)
    total = jnp.maximum(parts.weights.sum(), jnp.finfo(jnp.float32).tiny)
    key = jax.random.fold_in(state.rng, state.step)
    rate = {}
    if isinstance(optimizer, optax.GradientTransformation):
        optimizer = optax.with_extra_args_support(optimizer)
    else:
        rate["lr"] = optimizer.rate(state.hyper, state.step)
    loss, gradients = _accumulated(model, state.trainable, frozen, parts, total, key)
    updates, opt_state = optimizer.update(
        gradients, state.opt_state, state.trainable, hyper=state.hyper, step=state.step
    )
    changed = state.replace(
        step=state.step + 1,
        trainable=optax.apply_updates(state.trainable, updates),
        opt_state=opt_state,
    )
    norm = optax.global_norm(gradients)
    return changed, {"loss": loss, "gradient_norm": norm, "weight": total} | rate


@partial(jax.jit, static_argnums=0)
def eval_step(model, variables, batch) -> tuple[jax.Array, jax.Array]:
    """Returns the weighted sum of a batch's losses without dropout, and the sum of its weights."""
    return weighted_loss(model, variables, {}, batch, None), batch.weights.sum()


def weighted_loss(model, trainable, frozen, batch, key: jax.Array | None) -> jax.Array:
    """Returns the sum of weight × cross-entropy over the scored positions of a batch.

    Logits are computed for the hidden states of the scored positions only.

    Args:
      model: The model.
      trainable: Variables that train, or all variables.
      frozen: Variables that do not train; empty if `trainable` has all of them.
      batch: A batch without micro-batches, or any object with the fields of `Batch`; `images` may
        be missing.
      key: Random key of dropout; None turns dropout off.

    Returns:
      The loss, float32[].
    """
    variables = tree.combine(trainable, frozen) if frozen else trainable
    rngs = {} if key is None else {"dropout": key}
    layout = arrange(batch.tokens.shape, batch.positions, batch.segments, batch.valid, batch.causal)
    images = getattr(batch, "images", None)  # a custom batch need not have the field
    scored = hidden_at(
        model, variables, batch.tokens, layout, batch.where, images=images, rngs=rngs
    )  # [B, K, D]
    head = [_only_head(part) for part in (trainable, frozen)]
    flat = (scored.reshape(-1, scored.shape[-1]), batch.targets.ravel(), batch.weights.ravel())
    return cross_entropy(model, *head, *flat)


def _accumulated(model, trainable, frozen, parts, total: jax.Array, key: jax.Array):
    """Returns loss and gradients summed over micro-batches, each divided by the batch's weight."""

    def loss(trainable, batch, key):
        return weighted_loss(model, trainable, frozen, batch, key) / total

    graded = jax.value_and_grad(loss)

    def add(carry, item):
        return jax.tree.map(jnp.add, carry, graded(trainable, *item)), None

    count = parts.tokens.shape[0]
    keys = jax.random.split(key, count)
    if count == 1:
        return graded(trainable, jax.tree.map(lambda leaf: leaf[0], parts), keys[0])
    start = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, trainable))
    return jax.lax.scan(add, start, (parts, keys))[0]


def _only_head(part) -> dict[str, jax.Array]:
    return {path: leaf for path, leaf in tree.flatten(part).items() if HEAD.fullmatch(path)}


def _beside(variables, state: TrainState) -> TrainState:
    """Commits the state to the device of `variables`, if these are committed to exactly one.

    A step returns a committed state. If the first state were uncommitted, the second step would be
    compiled again.
    """
    leaves = jax.tree.leaves(variables)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return state  # under jit, the caller's out_shardings decide
    bound = (leaf for leaf in leaves if getattr(leaf, "committed", False))
    devices = {device for leaf in bound for device in leaf.devices()}
    return jax.device_put(state, devices.pop()) if len(devices) == 1 else state


def _check_selection(selected: Mapping, everything: Mapping) -> None:
    if not selected:
        raise UserError(
            "the rules select no leaf to train; the leaves are "
            + ", ".join(list(everything)[:8])
            + (", …" if len(everything) > 8 else "")
        )
    for path, leaf in selected.items():
        if quant.is_quantized(leaf):
            raise UserError(
                f"{path} is quantised ({leaf.kind}) and cannot be trained: train an adapter on it,"
                " or keep it in full precision (quant takes rules: pattern -> kind or None)"
            )
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise UserError(f"{path} is {leaf.dtype}, which cannot be trained")
