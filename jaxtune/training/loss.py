"""Cross-entropy over a large vocabulary, with a chunk of the logits in memory at a time.

Over a mesh, every device has some of the vocabulary and computes the logits of all positions with
it: hidden states travel to the devices, and their gradients back, but never logits.

Axes beyond the decoder's: n scored positions; R groups of them, one for each device that has rows;
C positions of a group in a chunk; S parts of the vocabulary, W tokens of a block.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxtune import sharding, tree
from jaxtune.models import forward, tables
from jaxtune.models.attention import soften
from jaxtune.models.programs import in_precision
from jaxtune.quant import products

CHUNK_BYTES = 2**27  # size of the float32 logits of a chunk, or of its block of logits and its sums
SUMS = 4  # arrays as large as the hidden states of a chunk, beside the logits of a block
CHUNKS = P(None, *sharding.ROWS)  # chunks of all arrays, [chunks, R, C, ...]
REPEATED = P("data")  # hidden states of a chunk, on all devices that share the vocabulary
LOGITS = P("data", None, sharding.WEIGHTS)  # [R, C, V]


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

    return _summed(_chunk_loss, model, trainable, frozen, hidden, targets, weights)


def plain_cross_entropy(model, *given) -> jax.Array:  # float32[]
    """Returns what `cross_entropy` does, by operations that JAX differentiates in every mode.

    Its gradient computes the logits of each chunk once more. The arguments are the same.
    """
    return _summed(jax.checkpoint(_chunk_loss, static_argnums=0), model, *given)


def _summed(chunk_loss: Callable, model, trainable, frozen, *arrays) -> jax.Array:
    """Returns the sum of a loss over the chunks of arrays, of which hidden states come first."""
    trainable, frozen = sharding.as_head(trainable), sharding.as_head(frozen)

    def add(total, chunk):
        return total + chunk_loss(model, trainable, frozen, *chunk), None

    chunks = _chunks(_held(model, arrays[0]), *arrays)
    return jax.lax.scan(add, jnp.zeros((), jnp.float32), chunks)[0]


@in_precision  # as the gradient is traced outside of the program that asks for it
def _forward(model, trainable, frozen, hidden, targets, weights):
    """Returns the loss, and as residuals its gradients, so that logits are computed only once."""
    graded, span = _graded(model, *map(sharding.as_head, (trainable, frozen)), hidden)

    def add(carry, chunk):
        total, leaves = carry
        loss, (more, to_hidden) = graded(*chunk)
        return (total + loss, jax.tree.map(jnp.add, leaves, sharding.as_head(more))), to_hidden

    zeros = sharding.as_head(jax.tree.map(jnp.zeros_like, trainable))
    start = (jnp.zeros((), jnp.float32), zeros)
    chunks = _chunks(span, hidden, targets, weights)
    (loss, leaves), to_hidden = jax.lax.scan(add, start, chunks)
    return loss, (leaves, _joined(to_hidden, hidden))


def _backward(model, gradients, weight):
    leaves, to_hidden = jax.tree.map(lambda leaf: (leaf * weight).astype(leaf.dtype), gradients)
    return leaves, None, to_hidden, None, None


cross_entropy.defvjp(_forward, _backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def log_probs(
    model,
    trainable: Mapping,  # the head's leaves that train, by path
    frozen: Mapping,  # the head's leaves that do not train, by path
    hidden: jax.Array,  # [n, D]
    targets: jax.Array,  # int32[n]
) -> jax.Array:  # float32[n]
    """Returns the log-probability of each target, with a chunk of the logits in memory at a time.

    It has gradients with respect to `trainable` and `hidden`: those of a cross-entropy that is
    weighted by what the log-probabilities' gradients turn out to be, so that logits are computed
    once more. The arguments are those of `cross_entropy`.
    """
    trainable, frozen = sharding.as_head(trainable), sharding.as_head(frozen)

    def each(_, chunk):
        return None, -_chunk_losses(model, trainable, frozen, *chunk)

    chunks = _chunks(_held(model, hidden), hidden, targets)
    found = jax.lax.scan(each, None, chunks)[1]  # [chunks, R, C]
    return _joined(found[..., None], hidden[:, :1])[:, 0]


def _log_probs_forward(model, *given):
    return log_probs(model, *given), given


def _log_probs_backward(model, given, slopes):
    _, (leaves, to_hidden) = _forward(model, *given, -slopes)
    return leaves, None, to_hidden, None


log_probs.defvjp(_log_probs_forward, _log_probs_backward)


def _graded(model, trainable: Mapping, frozen: Mapping, hidden: jax.Array) -> tuple[Callable, int]:
    """Returns a chunk's loss-and-gradients function, and the float32 per position that it holds."""
    name, axis = ("embed", 0) if model.config.tied else ("head", 1)
    head = [leaf for path, leaf in frozen.items() if name in path.split("/")]
    if trainable or len(head) != 1 or not isinstance(head[0], jax.Array):
        graded = jax.value_and_grad(_chunk_loss, argnums=(1, 3))
        return partial(graded, model, trainable, frozen), _held(model, hidden)
    parts = sharding.ways(hidden, *sharding.WEIGHTS)
    parts = parts if head[0].shape[axis] % parts == 0 else 1
    graded = partial(_block_loss, parts, axis, head[0], model.config.logit_softcap)
    block = min(tables.BLOCK, head[0].shape[axis] // parts)
    return graded, block + SUMS * hidden.shape[-1]


def _held(model, hidden: jax.Array) -> int:
    """Returns the number of logits per position that a device holds."""
    return -(-model.config.vocabulary // sharding.ways(hidden, *sharding.WEIGHTS))


def _chunk_loss(model, trainable, frozen, hidden, targets, weights) -> jax.Array:
    """Returns the loss of a chunk, [R, C, D], from all of its logits."""
    return jnp.sum(weights * _chunk_losses(model, trainable, frozen, hidden, targets))


def _chunk_losses(model, trainable, frozen, hidden, targets) -> jax.Array:  # float32[R, C]
    """Returns the cross-entropy of each position of a chunk, [R, C, D]."""
    variables = tree.unflatten({**trainable, **frozen})
    everyone = sharding.resharded(hidden, REPEATED, sharding.ROWS)
    logits = forward.logits(model, variables, everyone)  # float32[R, C, V]
    logits = sharding.resharded(logits, LOGITS, LOGITS)
    # A sum, since to index the logits they would be gathered on every device.
    mine = targets[..., None] == jnp.arange(logits.shape[-1])
    picked = jnp.sum(jnp.where(mine, logits, 0), axis=-1)
    return jax.nn.logsumexp(logits, axis=-1) - picked


def _block_loss(
    parts: int,  # S, the number of parts of the vocabulary that are on devices of their own
    axis: int,  # of the vocabulary in the head
    head: jax.Array,  # [V, D] if it is tied, otherwise [D, V]
    cap: float | None,
    hidden: jax.Array,  # [R, C, D]
    targets: jax.Array,  # int32[R, C]
    weights: jax.Array,  # float32[R, C]
) -> tuple[jax.Array, tuple[dict, jax.Array]]:
    """Returns a chunk's loss and the gradient of `hidden`, for a head that does not train.

    It makes one pass over the vocabulary. As in fused attention, the sum of the exponentials of
    logits, and of token vectors weighted by them, is kept relative to the highest logit so far.
    """
    split = head.reshape(*head.shape[:axis], parts, -1, *head.shape[axis + 1 :])
    split = jnp.moveaxis(split, axis, 0)  # [S, V / S, D] or [S, D, V / S]
    everyone = sharding.resharded(hidden, REPEATED, sharding.ROWS).reshape(-1, hidden.shape[-1])
    places = targets.ravel() - split.shape[axis + 1] * jnp.arange(parts)[:, None]
    highest, total, pull = _in_parts(partial(_over_blocks, everyone, cap, axis), split)
    own = _in_parts(partial(_own, everyone.dtype, axis), split, places)  # [S, n, D]
    top = highest.max(0)
    shrink = jnp.exp(highest - top)
    total = jnp.sum(total * shrink, 0)
    picked = jnp.sum(everyone * own, (0, 2), dtype=jnp.float32)
    picked, slope = _softened(picked, cap)
    losses = (top + jnp.log(total) - picked).reshape(targets.shape)
    # One sum over the parts, so that only its result travels.
    pull = jnp.sum(pull * (shrink / total)[..., None] - slope[:, None] * own, 0)
    pull = sharding.resharded(pull.reshape(hidden.shape), sharding.ROWS, REPEATED)
    to_hidden = weights[..., None] * pull
    return jnp.sum(weights * losses), ({}, to_hidden.astype(hidden.dtype))


def _own(dtype: Any, axis: int, part: jax.Array, places: jax.Array) -> jax.Array:  # [n, D]
    """Returns the vectors of targets, by their places in a part of the head; 0 outside of it."""
    inside = (places >= 0) & (places < part.shape[axis])
    found = tables.rows(part, jnp.where(inside, places, 0), dtype, axis)
    return jnp.where(inside[:, None], found, 0)


def _in_parts(compute: Callable, *arrays: jax.Array) -> Any:  # [S, ...] -> [S, ...]
    """Returns what a function computes of each part, side by side.

    A single part is computed without an axis of its own, for which XLA's CPU backend would
    transpose every block, and its TPU backend the whole head.
    """
    if len(arrays[0]) > 1:
        return jax.vmap(compute)(*arrays)
    return jax.tree.map(lambda found: found[None], compute(*(array[0] for array in arrays)))


def _over_blocks(
    hidden: jax.Array,  # [n, D]
    cap: float | None,
    axis: int,
    part: jax.Array,  # [V / S, D] with axis 0, [D, V / S] with axis 1
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the highest logit, and the sums relative to it, over some of the vocabulary.

    They are float32[n], the sum of exponentials float32[n], and the sum of token vectors weighted
    by these, times the derivative of the soft cap, float32[n, D].
    """

    def add(carry, rows):  # [W, D]
        highest, total, pull = carry
        logits, slope = _softened(products.einsum("nd,wd->nw", hidden, rows, jnp.float32), cap)
        top = jnp.maximum(highest, logits.max(-1))
        shrink, shares = jnp.exp(highest - top), jnp.exp(logits - top[:, None])
        pulling = (shares * slope).astype(hidden.dtype)
        more = products.einsum("nw,wd->nd", pulling, rows, jnp.float32)
        return top, total * shrink + shares.sum(-1), pull * shrink[:, None] + more

    count = hidden.shape[0]
    # Derived from `hidden`, the sums are sharded like it, and not like the table.
    start = (jnp.full((count,), -jnp.inf), jnp.zeros((count,)), 0 * hidden.astype(jnp.float32))
    return tables.fold(add, start, part, hidden.dtype, axis)


def _softened(logits: jax.Array, cap: float | None) -> tuple[jax.Array, jax.Array]:
    """Returns soft-capped logits, and the derivative of the cap at each logit."""
    return jax.jvp(lambda given: soften(given, cap), (logits,), (jnp.ones_like(logits),))


def _rows(hidden: jax.Array) -> int:
    """Returns the number of groups R of scored positions [n, ...] that are on different devices."""
    rows = sharding.ways(hidden, *sharding.ROWS[0])
    return rows if hidden.shape[0] % rows == 0 else 1


def _chunks(span: int, *arrays: Any) -> tuple[jax.Array, ...]:
    """Splits arrays [n, ...] over scored positions into [chunks, R, C, ...], padded with zeros.

    Chunks are of equal size, with C positions of every group, and their logits and sums, of which a
    device holds `span` per position, fit `CHUNK_BYTES` on each. Padding has a weight of zero.
    """
    rows = _rows(arrays[0])
    together = rows // sharding.ways(arrays[0], "data")
    count = arrays[0].shape[0] // rows
    most = max(1, CHUNK_BYTES // (4 * span * max(1, together)))
    number = -(-count // most)
    size = -(-count // number)

    def split(array):
        grouped = array.reshape(rows, count, *array.shape[1:])
        widths = [(0, 0), (0, number * size - count)] + [(0, 0)] * (array.ndim - 1)
        filled = jnp.pad(grouped, widths).reshape(rows, number, size, *array.shape[1:])
        return sharding.resharded(jnp.moveaxis(filled, 1, 0), CHUNKS, CHUNKS)

    return tuple(split(array) for array in arrays)


def _joined(chunks: jax.Array, like: jax.Array) -> jax.Array:  # [chunks, R, C, D] -> [n, D]
    """Joins chunks that `_chunks` made into an array like that which it split."""
    rows = chunks.shape[1]
    grouped = jnp.moveaxis(chunks, 0, 1).reshape(rows, -1, like.shape[-1])
    return grouped[:, : like.shape[0] // rows].reshape(like.shape)
