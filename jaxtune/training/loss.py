"""Cross-entropy over a large vocabulary, with a chunk of the logits in memory at a time.

Axes beyond the decoder's: n scored positions, C positions of a chunk, W tokens of a block.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxtune import tree
from jaxtune.models import forward, tables
from jaxtune.models.attention import soften

CHUNK_BYTES = 2**27  # size of the float32 logits of a chunk
TABLE = re.compile(r"params/(.*/)?embed/w")  # the embedding, also a tied head's weight


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def cross_entropy(
    model,
    trainable: Mapping,  # the head's leaves that train, by path
    frozen: Mapping,  # the head's leaves that do not train, by path
    hidden: jax.Array,  # [n, D]
    targets: jax.Array,  # int32[n]
    weights: jax.Array,  # float32[n]
) -> jax.Array:  # float32[]
    """Returns the weighted sum of the cross-entropy of each position.

    It has gradients with respect to `trainable` and `hidden`, computed in the forward pass, where
    each chunk's logits are at hand.

    Args:
      model: The model that the head belongs to.
      trainable: Leaves of the embedding or head that train, by slash path.
      frozen: Leaves of the embedding or head that do not train, by slash path.
      hidden: Hidden states after the final norm, at the scored positions.
      targets: Tokens to predict.
      weights: Weight of each position in the sum.

    Returns:
      The loss.
    """

    def add(total, chunk):
        return total + _chunk_loss(model, trainable, frozen, *chunk), None

    chunks = _chunks(model.config.vocabulary, hidden, targets, weights)
    return jax.lax.scan(add, jnp.zeros((), jnp.float32), chunks)[0]


def _forward(model, trainable, frozen, hidden, targets, weights):
    """Returns the loss, and as residuals its gradients, so that logits are computed only once."""
    graded, span = _graded(model, trainable, frozen)

    def add(carry, chunk):
        total, leaves = carry
        loss, (more, to_hidden) = graded(*chunk)
        return (total + loss, jax.tree.map(jnp.add, leaves, more)), to_hidden

    start = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, trainable))
    chunks = _chunks(span, hidden, targets, weights)
    (loss, leaves), to_hidden = jax.lax.scan(add, start, chunks)
    to_hidden = to_hidden.reshape(-1, hidden.shape[-1])[: hidden.shape[0]]
    return loss, (leaves, to_hidden)


def _backward(model, gradients, weight):
    leaves, to_hidden = jax.tree.map(lambda leaf: (leaf * weight).astype(leaf.dtype), gradients)
    return leaves, None, to_hidden, None, None


cross_entropy.defvjp(_forward, _backward)


def _graded(model, trainable: Mapping, frozen: Mapping) -> tuple[Callable, int]:
    """Returns a chunk's loss-and-gradients function, and how many logits per position it holds."""
    table = next((leaf for path, leaf in frozen.items() if TABLE.fullmatch(path)), None)
    if trainable or not model.config.tied or not isinstance(table, jax.Array):
        graded = jax.value_and_grad(_chunk_loss, argnums=(1, 3))
        return partial(graded, model, trainable, frozen), model.config.vocabulary
    blocks = tables.blocks(table)
    return partial(_block_loss, blocks, table, model.config.logit_softcap), blocks.shape[0]


def _chunk_loss(model, trainable, frozen, hidden, targets, weights) -> jax.Array:
    variables = tree.unflatten({**trainable, **frozen})
    logits = forward.logits(model, variables, hidden)  # float32[C, V]
    picked = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    return jnp.sum(weights * (jax.nn.logsumexp(logits, axis=-1) - picked))


def _block_loss(
    blocks: jax.Array,  # [W, V / W, D]
    table: jax.Array,  # [V, D], the same vectors
    cap: float | None,
    hidden: jax.Array,  # [C, D]
    targets: jax.Array,  # int32[C]
    weights: jax.Array,  # float32[C]
) -> tuple[jax.Array, tuple[dict, jax.Array]]:
    """Returns a chunk's loss and the gradient of `hidden`, for a tied head that does not train.

    It makes one pass over the vocabulary. As in fused attention, the sum of the exponentials of
    logits, and of token vectors weighted by them, is kept relative to the highest logit so far.
    """
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)

    def add(carry, number):
        highest, total, pull = carry
        rows = tables.block(blocks, number, hidden.dtype)
        logits, slope = _softened(product("nd,wd->nw", hidden, rows), cap)
        top = jnp.maximum(highest, logits.max(-1))
        shrink, shares = jnp.exp(highest - top), jnp.exp(logits - top[:, None])
        more = product("nw,wd->nd", (shares * slope).astype(hidden.dtype), rows)
        return (top, total * shrink + shares.sum(-1), pull * shrink[:, None] + more), None

    count = hidden.shape[0]
    # Derived from `hidden`, the sums are sharded like it, and not like the table.
    start = (jnp.full((count,), -jnp.inf), jnp.zeros((count,)), 0 * hidden.astype(jnp.float32))
    (highest, total, pull), _ = jax.lax.scan(add, start, jnp.arange(blocks.shape[1]))
    own = tables.rows(table, targets, hidden.dtype)
    picked, slope = _softened(product("nd,nd->n", hidden, own), cap)
    loss = jnp.sum(weights * (highest + jnp.log(total) - picked))
    to_hidden = weights[:, None] * (pull / total[:, None] - slope[:, None] * own)
    return loss, ({}, to_hidden.astype(hidden.dtype))


def _softened(logits: jax.Array, cap: float | None) -> tuple[jax.Array, jax.Array]:
    """Returns soft-capped logits, and the derivative of the cap at each logit."""
    return jax.jvp(lambda given: soften(given, cap), (logits,), (jnp.ones_like(logits),))


def _chunks(span: int, *arrays: Any) -> tuple[jax.Array, ...]:
    """Splits arrays [n, ...] over scored positions into [chunks, C, ...], padded with zeros.

    Chunks are of equal size, and their logits, `span` per position, fit `CHUNK_BYTES`. Padding has
    a weight of zero.
    """
    count = arrays[0].shape[0]
    most = max(1, CHUNK_BYTES // (4 * span))
    number = -(-count // most)
    size = -(-count // number)

    def split(array):
        widths = [(0, number * size - count)] + [(0, 0)] * (array.ndim - 1)
        return jnp.pad(array, widths).reshape(number, size, *array.shape[1:])

    return tuple(split(array) for array in arrays)
