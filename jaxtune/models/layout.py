"""Token layouts: positions, packed segments and attention masks. All masks are made here."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxtune.display.errors import UserError

PADDING = -1  # segment of a token that no token may see
EVERYTHING = 2**30  # window of a layer without a sliding window


@struct.dataclass
class Layout:
    """Three integers per token; an attention mask compares a query's with a key's.

    `causal`, `whole` and `counted` are static properties, known while tracing, by which a fused
    kernel that supports only such layouts can be chosen:
      causal: No token sees a later one.
      whole: One sequence fills each row.
      counted: Within a segment positions differ as indices do, provided its tokens are contiguous.
    """

    position: jax.Array  # int32[B, T], for rotary angles and windows
    segment: jax.Array  # int32[B, T], a token sees only tokens of its own segment
    order: jax.Array  # int32[B, T], a token sees only tokens of at most its own order
    causal: bool = struct.field(pytree_node=False, default=True)
    whole: bool = struct.field(pytree_node=False, default=True)
    counted: bool = struct.field(pytree_node=False, default=True)


def check_tokens(tokens: Any) -> None:
    """Raises ValueError for tokens that are no array of integers [B, T]."""
    shape, dtype = getattr(tokens, "shape", None), getattr(tokens, "dtype", None)
    if shape is None or dtype is None:
        found = f"a value of type {type(tokens).__name__}, {repr(tokens)[:40]}"
    elif len(shape) != 2 or not jnp.issubdtype(dtype, jnp.integer):
        found = f"{dtype}{list(shape)}"
    else:
        return
    raise UserError(
        f"the tokens are {found}: expected an array of token ids int32[B, T], such as "
        "jnp.asarray([[2, 10, 20]]); text becomes ids with model.origin.tokenizer.encode(text)"
    )


def arrange(
    shape: tuple[int, int],  # (B, T)
    positions: jax.Array | None = None,  # int32[B, T]
    segments: jax.Array | None = None,  # int32[B, T], 0 and up
    valid: jax.Array | None = None,  # bool[B, T], False at padding
    causal: jax.Array | None = None,  # bool[B, T], False where a token joins the block before it
) -> Layout:
    """Returns the layout of a batch; by default one causal sequence fills each row.

    Args:
      shape: (B, T).
      positions: Positions of tokens; by default they count from 0 at the first token of each
        segment that is not padding.
      segments: Index of the packed sequence that each token belongs to; by default a row is one.
      valid: False at padding; by default there is none.
      causal: False for a token that joins the block of the token before it. Tokens of one block see
        each other in both directions: a prefix is a block, as is a picture in a text.

    Returns:
      The layout, with PADDING as the segment of padding.
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


def together(shape: tuple[int, int]) -> Layout:
    """Returns the layout of tokens [B, T] that all see each other."""
    nowhere = jnp.zeros(shape, jnp.int32)
    return Layout(nowhere, nowhere, nowhere, causal=False)


def mask(query: Layout, key: Layout, window: jax.Array | int) -> jax.Array:  # bool[B, T, S]
    """Returns True where a query may see a key.

    The key must be earlier or in the query's block, in the same segment, no padding, and fewer than
    `window` positions before the query.
    """
    near = query.position[:, :, None] - key.position[:, None, :] < window
    before = key.order[:, None, :] <= query.order[:, :, None]
    same = query.segment[:, :, None] == key.segment[:, None, :]
    return near & before & same & (key.segment != PADDING)[:, None, :]


def reach(windows: tuple[int | None, ...], kind: jax.Array) -> jax.Array:  # int32[]
    """Returns the window of a layer kind as an array; `EVERYTHING` if it has none."""
    return jnp.asarray([EVERYTHING if w is None else w for w in windows], jnp.int32)[kind]


def lengths(layout: Layout) -> jax.Array:  # int32[B, T]
    """Returns for each token the length of its sequence: the highest position in it plus one."""
    if layout.whole:
        longest = jnp.max(layout.position, axis=1, keepdims=True) + 1
        return jnp.broadcast_to(longest, layout.position.shape)
    same = layout.segment[:, :, None] == layout.segment[:, None, :]
    return jnp.max(jnp.where(same, layout.position[:, None, :], 0), axis=2) + 1


def _restarted(index: jax.Array, segments: jax.Array, valid: jax.Array | None) -> jax.Array:
    """Returns positions that count from 0 at the first valid token of each segment."""
    begins = jnp.diff(segments, axis=1, prepend=segments[:, :1] - 1) != 0
    if valid is not None:
        count = jnp.cumsum(valid, axis=1, dtype=jnp.int32)
        before = jax.lax.cummax(jnp.where(begins, count - valid, 0), axis=1)
        begins |= valid & (count - before == 1)
    return index - jax.lax.cummax(jnp.where(begins, index, 0), axis=1)
