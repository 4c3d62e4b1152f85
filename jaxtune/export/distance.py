"""Measures how far apart the predictions of two models are."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxtune.display.errors import UserError

# Default text to compare models on: prose, dialogue, a list, numbers and code.
SAMPLE = """\
The river leaves the hills at a village with two bridges, and from there it takes its time. In
spring it carries snow water and is the colour of slate; by August a child can wade across it. The
older of the bridges was built for carts in 1794, and every driver who meets another one on it
still has to reverse.

"Did you count them again?" she asked. "Twice," he said, "and both times there were forty-one."

How to make a simple soup:
1. Cut 3 onions and 500 g of carrots, and fry them slowly for 15 minutes.
2. Add a litre of water, salt and one bay leaf. Simmer until everything is soft.
3. Take the leaf out before you blend it.

def mean(values):
    total = 0.0
    for value in values:
        total += value
    return total / len(values)

Water boils at 100 °C at sea level, and at about 93 °C two thousand metres higher, since the air
presses on it less. That is why pasta takes longer in the mountains.
"""


@dataclass(frozen=True)
class Distance:
    """Difference between a model's logits and those of a reference, over all positions."""

    kl: float  # mean KL(reference || other) of the next-token distributions, in nats
    logits: float  # largest absolute difference, divided by the standard deviation of the reference
    agreement: float  # fraction of positions with the same most likely token
    positions: int


def distance(reference: jax.Array, other: jax.Array) -> Distance:  # [..., V] each
    """Returns the distance of logits from those of a reference, computed in float32."""
    if reference.shape != other.shape:
        raise UserError(
            f"logits of shapes {reference.shape} and {other.shape} cannot be compared: expected "
            "the same tokens and vocabulary"
        )
    *figures, finite = map(float, _figures(jnp.asarray(reference), jnp.asarray(other)))
    if not finite:
        raise UserError("logits with infinities or NaNs cannot be compared")
    return Distance(*figures, positions=reference.size // reference.shape[-1])


@jax.jit
def _figures(reference: jax.Array, other: jax.Array) -> tuple[jax.Array, ...]:
    reference, other = reference.astype(jnp.float32), other.astype(jnp.float32)
    largest = jnp.abs(other - reference).max()
    deviation = reference.std()
    same = reference.argmax(axis=-1) == other.argmax(axis=-1)
    apart = jnp.where(largest > 0, largest / jnp.where(deviation > 0, deviation, 1), largest)
    finite = jnp.isfinite(reference).all() & jnp.isfinite(other).all()
    return _divergence(reference, other).mean(), apart, same.mean(), finite


def _divergence(reference: jax.Array, other: jax.Array) -> jax.Array:  # [..., V] -> [...]
    """Returns KL(reference || other) of each distribution, in nats."""
    ours, theirs = jax.nn.log_softmax(reference), jax.nn.log_softmax(other)
    more, p = theirs - ours, jnp.exp(ours)
    # As p and q both sum to 1, q - p can be added to each term -p log(q / p). Then no term is
    # negative, and terms do not cancel where the distributions are close.
    near = p * (jnp.expm1(more) - more)
    return jnp.where(jnp.abs(more) < 1, near, jnp.exp(theirs) - p - p * more).sum(axis=-1)
