"""The training step: a loss over the scored positions alone, and one jitted update.

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
from jaxtune.models.forward import hidden_at
from jaxtune.models.layout import arrange
from jaxtune.training.loss import cross_entropy
from jaxtune.training.optim import Optimizer

HEAD = re.compile(r"\w+/(.*/)?(embed|head)/.*")  # the leaves that logits are made with


@struct.dataclass
class TrainState:
    """All that a step changes, and the frozen leaves that it reads."""

    step: jax.Array  # int32[]
    trainable: Any  # variables, with None where a leaf is frozen
    frozen: Any  # the others
    opt_state: Any
    hyper: dict[str, jax.Array]  # what an optimiser may look up by name, such as lr
    rng: jax.Array

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
        """A state at step 0; `trainable` rules say which leaves, by path, are True."""
        selected, frozen = split(variables, trainable)
        # A leaf that trains is float32, so that small updates are not rounded away; and it is a
        # copy, because the step takes the state's memory for its own.
        selected = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), selected)
        numbers = {**getattr(optimizer, "hyper", {}), **(hyper or {})}
        state = cls(
            step=jnp.zeros((), jnp.int32),
            trainable=selected,
            frozen=None,
            opt_state=optimizer.init(selected),
            hyper={name: jnp.asarray(value, jnp.float32) for name, value in numbers.items()},
            rng=jax.random.key(0) if rng is None else rng,
        )
        return _beside(variables, state).replace(frozen=frozen)

    @property
    def variables(self) -> dict:
        """What `model.apply` takes."""
        return tree.combine(self.trainable, self.frozen)


def split(variables: Mapping, rules: tree.Rules, unused: str = "allow") -> tuple[Any, Any]:
    """Variables that train, and those that do not, by rules over their paths."""
    chosen = tree.select(variables, rules, unused=unused, is_leaf=quant.is_quantized)
    selected, frozen = tree.partition(variables, chosen, is_leaf=quant.is_quantized)
    _check_selection(quant.by_path(selected), quant.by_path(variables))
    return selected, frozen


def train_step(model, optimizer, state: TrainState, batch) -> tuple[TrainState, dict]:
    """One update, compiled. The state is donated, but for its frozen leaves.

    The batch's arrays are [B, T], or [A, B, T] for A micro-batches that are one batch: gradients
    are those of the whole, however unequal its rows and parts.
    """
    moving, metrics = compiled_step(
        model, optimizer, state.replace(frozen=None), state.frozen, batch
    )
    return moving.replace(frozen=state.frozen), metrics


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def compiled_step(model, optimizer, state: TrainState, frozen: Any, batch):
    """`train_step` as XLA sees it: frozen leaves go in and do not come out."""
    parts = batch if batch.tokens.ndim == 3 else jax.tree.map(lambda leaf: leaf[None], batch)
    total = jnp.maximum(parts.weights.sum(), jnp.finfo(jnp.float32).tiny)
    key = jax.random.fold_in(state.rng, state.step)
    if isinstance(optimizer, optax.GradientTransformation):
        optimizer = optax.with_extra_args_support(optimizer)
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
    return changed, {"loss": loss, "gradient_norm": norm, "weight": total}


@partial(jax.jit, static_argnums=0)
def eval_step(model, variables, batch) -> tuple[jax.Array, jax.Array]:
    """The weighted sum of a batch's losses, and the sum of its weights."""
    return weighted_loss(model, variables, {}, batch, None), batch.weights.sum()


def weighted_loss(model, trainable, frozen, batch, key: jax.Array | None) -> jax.Array:
    """Sum over scored positions of weight times cross-entropy.

    Hidden states of the scored positions are picked out before any logit is computed.
    """
    variables = tree.combine(trainable, frozen) if frozen else trainable
    rngs = {} if key is None else {"dropout": key}
    layout = arrange(batch.tokens.shape, batch.positions, batch.segments, batch.valid, batch.causal)
    images = getattr(batch, "images", None)  # a person's own batch need not have the field
    scored = hidden_at(
        model, variables, batch.tokens, layout, batch.where, images=images, rngs=rngs
    )  # [B, K, D]
    head = [_only_head(part) for part in (trainable, frozen)]
    flat = (scored.reshape(-1, scored.shape[-1]), batch.targets.ravel(), batch.weights.ravel())
    return cross_entropy(model, *head, *flat)


def _accumulated(model, trainable, frozen, parts, total: jax.Array, key: jax.Array):
    """Loss and gradients of all micro-batches, each weighed as in the whole."""

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
    """The state bound to the one device that variables are bound to, if they are.

    A step returns it bound: were it not before, the second step would be compiled anew.
    """
    leaves = jax.tree.leaves(variables)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return state  # whoever compiles this says where its results lie
    bound = (leaf for leaf in leaves if getattr(leaf, "committed", False))
    devices = {device for leaf in bound for device in leaf.devices()}
    return jax.device_put(state, devices.pop()) if len(devices) == 1 else state


def _check_selection(selected: Mapping, everything: Mapping) -> None:
    if not selected:
        raise ValueError(
            "the rules select nothing to train; the leaves are "
            + ", ".join(list(everything)[:8])
            + (", …" if len(everything) > 8 else "")
        )
    for path, leaf in selected.items():
        if quant.is_quantized(leaf):
            raise ValueError(
                f"{path} is quantised ({leaf.kind}), which cannot be trained: train adapters beside"
                " it, or keep it in full precision (quant takes rules: pattern -> kind or None)"
            )
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(f"{path} is {leaf.dtype}, which cannot be trained")
