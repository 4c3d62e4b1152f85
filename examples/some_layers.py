"""Trains the norms alone, and then the attention of layers 2 to 4 alone.

    python -m examples.some_layers

Rules over paths choose which leaves train. A leaf of the decoder holds all its layers, stacked on
the first axis, so single layers are chosen by an optimiser that leaves the others as they are.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxtune
from examples.rows import BASE, batches

NORMS = ((r"params/.*norm.*/scale", True), (r".*", False))
ATTENTION = ((r"params/layers/attn/.*/w", True), (r".*", False))


def only_layers(first: int, last: int) -> optax.GradientTransformation:
    """Returns a transformation that passes the updates of some layers, counted from 0."""

    def passed(update: jax.Array) -> jax.Array:
        number = jnp.arange(update.shape[0])
        kept = (first <= number) & (number <= last)
        return update * kept.reshape(-1, *[1] * (update.ndim - 1))

    return optax.stateless(lambda updates, _: jax.tree.map(passed, updates))


def trained(rules, optimizer, steps: int) -> tuple[dict, dict, list[float]]:
    """Returns the leaves that train, before and after some steps, and the losses."""
    model, variables = jaxtune.load(BASE, dtype="float32")
    state = jaxtune.TrainState.create(variables, trainable=rules, optimizer=optimizer)
    before, losses = jax.tree.map(np.array, state.trainable), []
    for _, batch in zip(range(steps), batches(model.origin.tokenizer), strict=False):
        state, metrics = jaxtune.train_step(model, optimizer, state, batch)
        losses.append(float(metrics["loss"]))
    return before, jax.tree.map(np.array, state.trainable), losses


def main(steps: int = 20) -> dict[str, list[float]]:
    """Trains both, and prints and returns their losses."""
    *_, norms = trained(NORMS, jaxtune.optimizer("adamw", lr=1e-2), steps)
    some = optax.chain(optax.adam(1e-3), only_layers(2, 4))
    before, after, losses = trained(ATTENTION, some, steps)
    moved = jax.tree.map(
        lambda old, new: np.abs(new - old).reshape(len(old), -1).max(-1), before, after
    )
    layers = np.max(jax.tree.leaves(moved), axis=0)
    print(f"norms: loss {norms[0]:.3f} -> {norms[-1]:.3f}")
    print(f"attention: loss {losses[0]:.3f} -> {losses[-1]:.3f}; largest change by layer {layers}")
    return {"norms": norms, "attention": losses, "layers": layers.tolist()}


if __name__ == "__main__":
    main()
