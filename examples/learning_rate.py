"""Finds a learning rate: raises it by a factor each step, and looks where the loss falls fastest.

    python -m examples.learning_rate

The learning rate is an array in the state, so that no step compiles anything anew.
"""

import jax
import jax.numpy as jnp
import numpy as np

import jaxtune
from examples.rows import BASE, batches

LOW, HIGH, SMOOTH = 1e-5, 1.0, 0.8


def main(steps: int = 40) -> float:
    """Prints the smoothed losses, and returns a tenth of the rate at which they are lowest."""
    model, variables = jaxtune.load(BASE, dtype="float32")
    variables = jaxtune.add_lora(variables, rank=8, alpha=16, key=jax.random.key(0))
    optimizer = jaxtune.optimizer("adamw")
    state = jaxtune.TrainState.create(variables, optimizer=optimizer)
    rates, losses, smooth = np.geomspace(LOW, HIGH, steps), [], None
    for rate, batch in zip(rates, batches(model.origin.tokenizer), strict=False):
        hyper = {**state.hyper, "lr": jnp.asarray(rate, jnp.float32)}
        state, metrics = jaxtune.train_step(model, optimizer, state.replace(hyper=hyper), batch)
        loss = float(metrics["loss"])
        smooth = loss if smooth is None else SMOOTH * smooth + (1 - SMOOTH) * loss
        losses.append(smooth)
        if not np.isfinite(loss) or smooth > 1.5 * losses[0]:
            break
    for rate, loss in list(zip(rates, losses, strict=False))[::4]:
        print(f"{rate:8.1e}  {loss:.3f}")
    best = float(rates[int(np.argmin(losses))]) / 10
    print(f"try optim.lr={best:.1e}")
    return best


if __name__ == "__main__":
    main()
