"""Trains an adapter on pairs of answers by DPO, so that the preferred one becomes likelier.

    python -m examples.preference

The reference model is the base, which is the model without its adapter. A batch holds the preferred
answer of a pair in an even row, and the other one in the row after it.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

import jaxtune
from jaxtune.data.batches import Batch, collate
from jaxtune.data.examples import Example

BASE = "configs/tiny/base"
PAIRS = (("a calm sea at dawn", "#1f3a5f", "red"), ("rust and dry leaves", "#8b4513", "blue"))


@struct.dataclass
class Preference:
    """DPO: −log σ(β · (gain of the preferred answer − gain of the other)), a mean over pairs.

    A gain is how much likelier an answer is than under the base.
    """

    beta: float = 0.1

    def weight(self, batch: Batch) -> jax.Array:
        """Returns the number of pairs; those of padding do not count."""
        return _pairs(batch).sum()

    def __call__(self, forward: jaxtune.Forward, batch: Batch):
        """Returns the sum of losses over pairs, and sums of margins and of pairs in order."""
        scored = batch.weights > 0
        ours, base = (
            jnp.where(scored, each.log_probs(batch), 0).sum(-1) for each in (forward, forward.base)
        )
        preferred, other = (ours - base).reshape(-1, 2).T
        margins, pairs = self.beta * (preferred - other), _pairs(batch)
        right = {"margin": (margins * pairs).sum(), "accuracy": ((margins > 0) * pairs).sum()}
        return (-jax.nn.log_sigmoid(margins) * pairs).sum(), right


def _pairs(batch: Batch) -> jax.Array:  # bool[..., B / 2]
    """Returns which pairs of rows have answers."""
    rows = (batch.weights > 0).any(-1)
    return rows.reshape(*rows.shape[:-1], -1, 2).all(-1)


def batch_of(tokenizer, pairs) -> Batch:
    """Returns a batch of pairs, [2 × pairs, …], in which the answers are scored."""
    examples = []
    for prompt, *answers in pairs:
        for answer in answers:
            tokens = np.array([*tokenizer.encode(prompt), *tokenizer.encode(answer)], np.int32)
            scored = np.arange(len(tokens)) >= len(tokenizer.encode(prompt))
            examples.append([Example(tokens, scored, None, prompt)])
    return collate(examples, shape=(len(examples), 64, 16))


def main(steps: int = 30) -> list[dict[str, float]]:
    """Trains, and prints and returns the metrics of each step."""
    model, variables = jaxtune.load(BASE, dtype="float32")
    variables = jaxtune.add_lora(variables, rank=8, alpha=16, key=jax.random.key(0))
    optimizer = jaxtune.optimizer("adamw", lr=1e-3)
    state = jaxtune.TrainState.create(variables, optimizer=optimizer)
    batch, found = batch_of(model.origin.tokenizer, PAIRS), []
    for step in range(steps):
        state, metrics = jaxtune.train_step(
            model, optimizer, state, batch, objective=Preference(beta=0.1)
        )
        found.append({name: float(value) for name, value in metrics.items()})
        if step % 10 == 9:
            print(", ".join(f"{name} {value:.4g}" for name, value in found[-1].items()))
    return found


if __name__ == "__main__":
    main()
