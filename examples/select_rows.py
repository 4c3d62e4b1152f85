"""Ranks training rows by how much a step on each would lower the loss of held-out rows.

    python -m examples.select_rows

To first order, a step of gradient descent on a row changes the held-out loss by the product of the
two gradients. They are those of an adapter, after a few steps in which its B leaves zero.
"""

import jax
import jax.numpy as jnp
import numpy as np

import jaxtune
from examples.rows import BASE, batches


def main(warm: int = 10, count: int = 32) -> np.ndarray:
    """Prints the rows of a batch in order of their gain, and returns the gains."""
    model, variables = jaxtune.load(BASE, dtype="float32")
    variables = jaxtune.add_lora(variables, rank=4, alpha=8, key=jax.random.key(0))
    optimizer = jaxtune.optimizer("adamw", lr=2e-3)
    state = jaxtune.TrainState.create(variables, optimizer=optimizer)
    tokenizer = model.origin.tokenizer
    for _, batch in zip(range(warm), batches(tokenizer), strict=False):
        state, _ = jaxtune.train_step(model, optimizer, state, batch)
    held_out, candidates = next(batches(tokenizer, count, seed=1)), next(batches(tokenizer, count))

    def loss(adapter, frozen, batch):
        forward = jaxtune.Forward(model, adapter, frozen)
        return forward.cross_entropy(batch) / batch.weights.sum()

    @jax.jit  # the base is an argument, as an array that a program encloses is compiled into it
    def gains(adapter, frozen, rows, held_out):
        wanted = jax.grad(loss)(adapter, frozen, held_out)

        def gain(row):
            own = jax.grad(loss)(adapter, frozen, jax.tree.map(lambda leaf: leaf[None], row))
            products = jax.tree.map(jnp.vdot, own, wanted)
            return sum(jax.tree.leaves(products))

        return jax.lax.map(gain, rows)

    found = np.asarray(gains(state.trainable, state.frozen, candidates, held_out))
    for row in np.argsort(-found)[[0, 1, -2, -1]]:
        tokens = candidates.tokens[row][candidates.valid[row]]
        print(f"{found[row]:+.4f}  {tokenizer.decode(tokens.tolist()).splitlines()[0]}")
    return found


if __name__ == "__main__":
    main()
