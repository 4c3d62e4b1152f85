"""The training step: the gradients of an objective, and one jitted update.

Axes beyond the decoder's: A micro-batches, K scored positions of a row.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxtune import quant, tree
from jaxtune.adapters import lora
from jaxtune.display.errors import UserError
from jaxtune.display.escapes import typed
from jaxtune.models import host
from jaxtune.models.arguments import check_batch, check_model, check_variables
from jaxtune.models.programs import program
from jaxtune.training.objectives import CROSS_ENTROPY, Forward, as_objective, computed
from jaxtune.training.optim import Optimizer


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
        check_variables(variables)
        _check_optimizer(optimizer)
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


def _check_optimizer(optimizer: Any) -> None:
    """Raises UserError unless an argument is an optimiser."""
    if not hasattr(optimizer, "init") or not hasattr(optimizer, "update"):
        raise UserError(
            f"optimizer is {typed(optimizer)}; expected what jaxtune.optimizer('adamw', "
            "lr=1e-4) returns, or an optax transformation"
        )


def split(variables: Mapping, rules: tree.Rules, unused: str = "allow") -> tuple[Any, Any]:
    """Splits variables into (trainable, frozen) by rules over their paths.

    Raises ValueError if no leaf is selected, or a leaf that is quantised or not floating-point.
    """
    chosen = tree.select(variables, rules, unused=unused, is_leaf=quant.is_quantized)
    selected, frozen = tree.partition(variables, chosen, is_leaf=quant.is_quantized)
    _check_selection(quant.by_path(selected), quant.by_path(variables))
    return selected, frozen


def train_step(
    model, optimizer, state: TrainState, batch, *, objective=CROSS_ENTROPY
) -> tuple[TrainState, dict]:
    """Runs one compiled update; donates the state except for its frozen leaves.

    Args:
      model: The model.
      optimizer: An `Optimizer` or an optax transformation, whose update gets the extra arguments
        `hyper` and `step`.
      state: The state before the step; except for `frozen` it must not be used afterwards. Of a
        frozen embedding that is a NumPy array, devices get the vectors of `batch.tokens` alone;
        those of other tokens that an objective looks up are NaN. See `jaxtune.models.host`.
      batch: A `Batch` of arrays [B, …], or [A, B, …] for A micro-batches. Gradients are those of
        the whole batch, even if its rows and micro-batches have unequal weights.
      objective: What is minimised, by default cross-entropy; see `jaxtune.training.objectives`.

    Returns:
      The state after the step, and metrics: "loss", the weighted mean, by default over scored
      positions, the objective's metrics, likewise divided by its weight, "gradient_norm", before
      clipping, "weight", the sum of weights, and for an `Optimizer` "lr", the scheduled learning
      rate.
    """
    check_model(model)
    _check_optimizer(optimizer)
    check_batch(batch)
    if not isinstance(state, TrainState):
        raise UserError(
            f"state is {typed(state)}; expected a jaxtune.TrainState, which "
            "TrainState.create(variables, optimizer=optimizer) returns"
        )
    frozen = host.extracted(state.frozen, batch.tokens)
    moving, metrics = compiled_step(
        model, optimizer, state.replace(frozen=None), frozen, batch, as_objective(objective)
    )
    return moving.replace(frozen=state.frozen), metrics


@program(static_argnums=(0, 1), donate_argnums=2)
def compiled_step(model, optimizer, state: TrainState, frozen: Any, batch, objective=CROSS_ENTROPY):
    """Computes `train_step` under jit, where frozen leaves are an input but not an output.

    Args:
      model: The model.
      optimizer: As in `train_step`.
      state: The state with `frozen` set to None; it is donated.
      frozen: The frozen leaves.
      batch: As in `train_step`.
      objective: As in `train_step`, but no plain function.

    Returns:
      The state after the step, with `frozen` None, and the metrics of `train_step`.
    """
    parts = batch if batch.tokens.ndim == 3 else jax.tree.map(lambda leaf: leaf[None], batch)
    total = jnp.maximum(objective.weight(parts), jnp.finfo(jnp.float32).tiny)
    key = jax.random.fold_in(state.rng, state.step)
    rate = {}
    if isinstance(optimizer, optax.GradientTransformation):
        optimizer = optax.with_extra_args_support(optimizer)
    else:
        rate["lr"] = optimizer.rate(state.hyper, state.step)

    def loss(trainable, batch, key):
        found, metrics = computed(objective, Forward(model, trainable, frozen, key), batch)
        return found / total, {name: each / total for name, each in metrics.items()}

    (loss, metrics), gradients = _accumulated(loss, state.trainable, parts, key)
    updates, opt_state = optimizer.update(
        gradients, state.opt_state, state.trainable, hyper=state.hyper, step=state.step
    )
    changed = state.replace(
        step=state.step + 1,
        trainable=optax.apply_updates(state.trainable, updates),
        opt_state=opt_state,
    )
    norm = optax.global_norm(gradients)
    return changed, {"loss": loss, **metrics, "gradient_norm": norm, "weight": total} | rate


def eval_step(
    model, variables, batch, *, objective=CROSS_ENTROPY
) -> tuple[jax.Array, jax.Array]:  # float32[], float32[]
    """Returns the weighted sum of a batch's losses without dropout, and the sum of its weights."""
    check_model(model)
    check_variables(variables)
    check_batch(batch)
    sums = eval_sums(model, variables, batch, as_objective(objective))
    return sums["loss"], sums["weight"]


def eval_sums(model, variables, batch, objective=CROSS_ENTROPY) -> dict[str, jax.Array]:
    """Returns what `compiled_eval` does, for variables whose embedding may be on the host."""
    return compiled_eval(model, host.extracted(variables, batch.tokens), batch, objective)


@program(static_argnums=0)
def compiled_eval(model, variables, batch, objective=CROSS_ENTROPY) -> dict[str, jax.Array]:
    """Returns sums over a batch, without dropout: "loss", "weight", and the objective's metrics."""
    found, metrics = computed(objective, Forward(model, variables, {}), batch)
    return {"loss": found, "weight": objective.weight(batch), **metrics}


def _accumulated(loss: Callable, trainable: Any, parts: Any, key: jax.Array) -> Any:
    """Returns the values of a loss, summed over micro-batches, and the gradients of the first.

    Args:
      loss: From trainable variables, a micro-batch and a random key to (loss, metrics).
      trainable: The variables.
      parts: Micro-batches, [A, B, …].
      key: Random key, of which each micro-batch gets a part.
    """
    graded = jax.value_and_grad(loss, has_aux=True)
    count = parts.tokens.shape[0]
    keys = jax.random.split(key, count)
    if count == 1:
        return graded(trainable, jax.tree.map(lambda leaf: leaf[0], parts), keys[0])

    def add(carry, item):
        return jax.tree.map(jnp.add, carry, graded(trainable, *item)), None

    first = jax.tree.map(lambda leaf: leaf[0], parts)
    shapes = jax.eval_shape(graded, trainable, first, keys[0])
    start = jax.tree.map(lambda each: jnp.zeros(each.shape, each.dtype), shapes)
    return jax.lax.scan(add, start, (parts, keys))[0]


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
