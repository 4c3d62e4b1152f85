"""Where each token stands, and which tokens it may see: the one place masks are made."""

import jax
import jax.numpy as jnp
from flax import struct

PADDING = -1  # the segment of a token that nothing may see
EVERYTHING = 2**30  # the window of a layer that has none


@struct.dataclass
class Layout:
    """Three integers a token; a mask is a comparison of a query's with a key's.

    `causal`, `whole` and `counted` say what is known while tracing, so that a fused kernel that
    can express only that much may be chosen: every token sees only earlier ones; one sequence
    fills each row; positions differ as indices do, given that a segment is one run of tokens.
    """

    position: jax.Array  # int32[B, T], for rotary angles and windows
    segment: jax.Array  # int32[B, T], sequences packed in a row see themselves alone
    order: jax.Array  # int32[B, T], a token sees those of its own order and below
    causal: bool = struct.field(pytree_node=False, default=True)
    whole: bool = struct.field(pytree_node=False, default=True)
    counted: bool = struct.field(pytree_node=False, default=True)


def arrange(
    shape: tuple[int, int],  # (B, T)
    positions: jax.Array | None = None,  # int32[B, T]
    segments: jax.Array | None = None,  # int32[B, T], 0 and up
    valid: jax.Array | None = None,  # bool[B, T], False at padding
    causal: jax.Array | None = None,  # bool[B, T], False where a token joins the block before it
) -> Layout:
    """The layout of a batch; by default one causal sequence fills each row.

    Tokens of one block see each other, ahead too: a prefix is a block, as is a picture in a text.
    Positions not given count from the first token of each segment that is not padding.
    """
    whole = segments is None and valid is None
    counted = positions is None
    index = jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32), shape)
    segments = jnp.zeros(shape, jnp.int32) if segments is None else segments
    segment = segments if valid is None else jnp.where(valid, segments, PADDING)
    if positions is None:
        positions = index if whole else _restarted(index, segments, valid)
    # A block has one order: that of the causal token which begins it, or 0 at the start of a row.
    order = index if causal is None else jnp.cumsum(causal, axis=1, dtype=jnp.int32)
    return Layout(positions, segment, order, causal is None, whole, counted)


def mask(query: Layout, key: Layout, window: jax.Array | int) -> jax.Array:  # bool[B, T, S]
    """True where a query may see a key: earlier or of its block, same sequence, within window."""
    near = query.position[:, :, None] - key.position[:, None, :] < window
    before = key.order[:, None, :] <= query.order[:, :, None]
    same = query.segment[:, :, None] == key.segment[:, None, :]
    return near & before & same & (key.segment != PADDING)[:, None, :]


def reach(windows: tuple[int | None, ...], kind: jax.Array) -> jax.Array:  # int32[]
    """The window of a layer of this kind, as data."""
    return jnp.asarray([EVERYTHING if w is None else w for w in windows], jnp.int32)[kind]


def lengths(layout: Layout) -> jax.Array:  # int32[B, T]
    """Tokens in the sequence that each token belongs to."""
    if layout.whole:
        longest = jnp.max(layout.position, axis=1, keepdims=True) + 1
        return jnp.broadcast_to(longest, layout.position.shape)
    same = layout.segment[:, :, None] == layout.segment[:, None, :]
    return jnp.max(jnp.where(same, layout.position[:, None, :], 0), axis=2) + 1


def _restarted(index: jax.Array, segments: jax.Array, valid: jax.Array | None) -> jax.Array:
    """Positions that count from 0 where the segment changes, or at its first valid token."""
    begins = jnp.diff(segments, axis=1, prepend=segments[:, :1] - 1) != 0
    if valid is not None:
        count = jnp.cumsum(valid, axis=1, dtype=jnp.int32)
        before = jax.lax.cummax(jnp.where(begins, count - valid, 0), axis=1)
        begins |= valid & (count - before == 1)
    return index - jax.lax.cummax(jnp.where(begins, index, 0), axis=1)
