"""Distils a teacher: the student's distribution over the vocabulary is drawn to the teacher's.

    python -m examples.distillation

Here the teacher is the base with an adapter that was trained for some steps, and the student the
base with a new adapter of rank 2. A bigger model of the same vocabulary does as well: its variables
are arrays of the objective, so that the compiled step takes them as an argument.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

import jaxtune
from examples.rows import BASE, batches
from jaxtune import objectives


@struct.dataclass
class Distillation:
    """Mean KL divergence of the student's next-token distribution from the teacher's."""

    variables: Any  # of the teacher
    teacher: Any = struct.field(pytree_node=False)  # its model

    def weight(self, batch) -> jax.Array:
        """Returns the sum of the weights of scored positions."""
        return batch.weights.sum()

    def __call__(self, forward: jaxtune.Forward, batch):
        """Returns the weighted sum of divergences over the scored positions."""
        teacher = objectives.of(self.teacher, self.variables)
        ours, theirs = (
            jax.nn.log_softmax(each.logits(each.hidden(batch))) for each in (forward, teacher)
        )
        apart = jnp.sum(jnp.exp(theirs) * (theirs - ours), axis=-1)  # float32[B, K]
        agree = (ours.argmax(-1) == theirs.argmax(-1)) * batch.weights
        return (apart * batch.weights).sum(), {"agreement": agree.sum()}


def main(steps: int = 30) -> list[dict[str, float]]:
    """Trains the teacher, then the student; prints and returns the student's metrics."""
    model, variables = jaxtune.load(BASE, dtype="float32")
    optimizer = jaxtune.optimizer("adamw", lr=5e-3)
    rows = batches(model.origin.tokenizer)

    def state(rank: int) -> jaxtune.TrainState:
        adapted = jaxtune.add_lora(variables, rank=rank, alpha=16, key=jax.random.key(rank))
        return jaxtune.TrainState.create(adapted, optimizer=optimizer)

    teacher, student, found = state(8), state(2), []
    for _ in range(steps):
        teacher, _ = jaxtune.train_step(model, optimizer, teacher, next(rows))
    distillation = Distillation(teacher.variables, model)
    for step in range(steps):
        student, metrics = jaxtune.train_step(
            model, optimizer, student, next(rows), objective=distillation
        )
        found.append({name: float(value) for name, value in metrics.items()})
        if step % 10 == 9:
            print(f"step {step + 1}: KL {found[-1]['loss']:.4f}, same {found[-1]['agreement']:.0%}")
    return found


if __name__ == "__main__":
    main()
