"""Attention over blocks of queries and keys, in memory that grows linearly with the tokens.

The softmax is computed online: logits exist for one pair of blocks at a time, and the backward pass
computes them again from the saved log-sum-exp. Pairs of blocks in which no query sees a key are
left out, so that a causal mask costs half the square, a window the tokens times the window, and
packed sequences the sum of their squares. It runs on every backend.

Axes beyond the decoder's: n blocks of queries, m blocks of keys, P pairs of them, Q queries and
S keys of a block, G query heads for each key head, R = Q × G rows of logits.
"""

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct

from jaxtune.models.layout import PADDING, Layout, mask, together
from jaxtune.quant import products
from jaxtune.quant.precision import Setting

NOTHING = -1.0e38  # below all logits, and finite, so that differences of two of them are numbers
# Bytes of logits at a time, by platform: what a CPU's caches hold; elsewhere enough for a product.
LOGITS = {"cpu": 2**21, "other": 2**25}
SMALLEST, LARGEST = 128, 1024  # tokens of a block
STEP = 64  # blocks of this many tokens or more are multiples of it
FAR = 2**29  # beyond every order, position and segment
Layouts = tuple[Layout, Layout] | None  # of queries and keys; None: every query sees every key


@dataclass(frozen=True)
class Blocks:
    """Settings of a call that are compiled into it."""

    queries: int  # of a block
    keys: int
    scale: float
    softcap: float | None
    precision: Setting  # of products, where the call is traced


@struct.dataclass
class Softmax:
    """A softmax over some keys, and the values that it weighs, which further keys can join."""

    out: jax.Array  # float32[..., R, H], the sum of values weighted by exp(logit - most)
    most: jax.Array  # float32[..., R], the largest logit
    total: jax.Array  # float32[..., R], the sum of exp(logit - most)

    @classmethod
    def empty(cls, shape: tuple[int, ...]) -> "Softmax":
        """Returns the softmax over no key, for queries of a shape [..., R, H]."""
        most = jnp.full(shape[:-1], NOTHING, jnp.float32)
        return cls(jnp.zeros(shape, jnp.float32), most, jnp.zeros(shape[:-1], jnp.float32))

    def joined(
        self,
        logits: jax.Array,  # float32[B, K, R, S]
        seen: jax.Array | None,  # bool, which broadcasts to the logits; None: all
        values: jax.Array,  # [B, K, S, H]
    ) -> "Softmax":
        """Returns the softmax over further keys, too."""
        shown = logits if seen is None else jnp.where(seen, logits, NOTHING)
        most = jnp.maximum(self.most, shown.max(-1))
        shares = jnp.exp(shown - most[..., None])
        if seen is not None:
            shares = jnp.where(seen, shares, 0)
        kept = jnp.exp(self.most - most)
        added = _product("bkrs,bksh->bkrh", shares.astype(values.dtype), values)
        out = self.out * kept[..., None] + added
        return Softmax(out, most, self.total * kept + shares.sum(-1))

    def mean(self) -> jax.Array:  # float32[..., R, H]
        """Returns the mean of the values; zeros for a query that sees no key."""
        return self.out / self._positive[..., None]

    def log_sum(self) -> jax.Array:  # float32[..., R]
        """Returns the log-sum-exp of the logits."""
        return self.most + jnp.log(self._positive)

    @property
    def _positive(self) -> jax.Array:
        return jnp.where(self.total > 0, self.total, 1)


def blockwise(
    q: jax.Array,  # [B, T, N, H]
    k: jax.Array,  # [B, S, K, H], N a multiple of K
    v: jax.Array,  # [B, S, K, H]
    layouts: Layouts,  # [B, T] and [B, S]
    window: jax.Array | int,  # int32[]
    *,
    scale: float,
    softcap: float | None = None,
    block: int,
    forward: bool = False,
) -> jax.Array:  # [B, T, N, H]
    """Computes what `attention.plain` does, one pair of blocks at a time.

    A query that sees no key gets zeros, where the plain form gives the mean of all values.

    Args:
      q: Queries, rotated and not scaled.
      k: Keys, rotated.
      v: Values.
      layouts: Layouts of queries and keys; None: every query sees every key.
      window: How many positions a query sees, its own included.
      scale: Factor of the logits.
      softcap: Limit of `attention.soften` on the scaled logits; None for no limit.
      block: Most queries and keys of a block, such as `block_of` gives.
      forward: Whether JAX differentiates the loop itself, in forward mode only. By default it has
        a gradient of its own, for reverse mode.

    Returns:
      Attended values of each query head.
    """
    sizes = (_even(q.shape[1], block), _even(k.shape[1], block))
    blocks = Blocks(*sizes, scale, softcap, Setting.present())
    if layouts is None and k.shape[1] % blocks.keys:  # what fills up the last block is padding
        layouts = together(q.shape[:2]), together(k.shape[:2])
    if forward:
        return blockwise_forward(q, k, v, layouts, window, blocks)[0]
    return _attended(q, k, v, layouts, window, blocks)


def _even(tokens: int, most: int) -> int:
    """Returns the size of as few blocks as there can be, so that the last one is hardly padded."""
    size = -(-tokens // -(-tokens // most))
    return size if most < STEP else min(tokens, -(-size // STEP) * STEP)


def block_of(q: jax.Array, platform: str) -> int:
    """Returns the most tokens of a block: a power of two whose logits take at most `LOGITS`."""
    most = LOGITS.get(platform, max(LOGITS.values()))
    tokens = math.isqrt(most // (4 * q.shape[0] * q.shape[2]))
    return min(max(SMALLEST, 1 << max(0, tokens.bit_length() - 1)), LARGEST)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attended(q, k, v, layouts: Layouts, window, blocks: Blocks) -> jax.Array:
    return blockwise_forward(q, k, v, layouts, window, blocks)[0]


def _saved(q, k, v, layouts: Layouts, window, blocks: Blocks) -> tuple[jax.Array, tuple]:
    out, mean, sums = blockwise_forward(q, k, v, layouts, window, blocks)
    return out, (q, k, v, layouts, window, mean, sums)


@partial(jax.jit, static_argnums=5)  # under a name that `runs/plan/flops.py` knows
def blockwise_forward(
    q, k, v, layouts: Layouts, window, blocks: Blocks
) -> tuple[jax.Array, jax.Array, jax.Array]:  # [B, T, N, H]; float32[n, B, K, R, H], [n, B, K, R]
    """Returns what is attended, the same before it is rounded, and its log-sum-exp."""
    heads = k.shape[2]
    qs = _rows(q, heads, blocks.queries)
    ks, vs = (_rows(each, heads, blocks.keys) for each in (k, v))
    cut = _cut_layouts(layouts, blocks)
    first, second, count = _pairs(cut, window, qs.shape[0], ks.shape[0])

    def step(number: jax.Array, carry: Softmax) -> Softmax:
        i, j = first[number], second[number]
        logits, seen = _logits(qs[i], ks[j], _chosen(cut, i, j), window, blocks)
        part = jax.tree.map(lambda x: x[i], carry).joined(logits, seen, vs[j])
        return jax.tree.map(lambda x, new: x.at[i].set(new), carry, part)

    found = jax.lax.fori_loop(0, count, step, Softmax.empty(qs.shape))
    mean = found.mean()
    return _tokens(mean, q), mean, found.log_sum()


def _pulled(blocks: Blocks, saved: tuple, gradient: jax.Array) -> tuple:
    # JAX traces this once the call is over, where its precision need not be set any more.
    with blocks.precision.entered():
        return blockwise_backward(blocks, saved, gradient)


@partial(jax.jit, static_argnums=0)
def blockwise_backward(blocks: Blocks, saved: tuple, gradient: jax.Array) -> tuple:
    """Returns the gradients of q, k and v, from those of the output."""
    q, k, v, layouts, window, mean, sums = saved
    heads = k.shape[2]
    qs = _rows(q, heads, blocks.queries)
    ks, vs = (_rows(each, heads, blocks.keys) for each in (k, v))
    wanted = _rows(gradient, heads, blocks.queries)
    inner = (wanted.astype(jnp.float32) * mean).sum(-1)
    cut = _cut_layouts(layouts, blocks)
    first, second, count = _pairs(cut, window, qs.shape[0], ks.shape[0])

    def step(number: jax.Array, carry: tuple) -> tuple:
        dq, dk, dv = carry
        i, j = first[number], second[number]
        logits, seen = _logits(qs[i], ks[j], _chosen(cut, i, j), window, blocks)
        shares = jnp.exp(logits - sums[i][..., None])
        if seen is not None:
            shares = jnp.where(seen, shares, 0)
        dv = dv.at[j].add(_product("bkrs,bkrh->bksh", shares.astype(v.dtype), wanted[i]))
        slope = shares * (_product("bkrh,bksh->bkrs", wanted[i], vs[j]) - inner[i][..., None])
        if blocks.softcap is not None:
            slope *= 1 - jnp.square(logits / blocks.softcap)
        slope *= blocks.scale  # not rounded to bfloat16: it is small beside the sums that it joins
        dq = dq.at[i].add(_product("bkrs,bksh->bkrh", slope, ks[j]))
        dk = dk.at[j].add(_product("bkrs,bkrh->bksh", slope, qs[i]))
        return dq, dk, dv

    begin = tuple(jnp.zeros(each.shape, jnp.float32) for each in (qs, ks, vs))
    dq, dk, dv = jax.lax.fori_loop(0, count, step, begin)
    return _tokens(dq, q), _tokens(dk, k), _tokens(dv, v), None, None


_attended.defvjp(_saved, _pulled)


def attend_cache(
    q: jax.Array,  # [B, T, N, H], few queries
    k: jax.Array,  # [L, B, K, S, H]
    v: jax.Array,  # [L, B, K, S, H]
    layer: jax.Array,  # int32[]
    layouts: tuple[Layout, Layout],  # [B, T] and [B, S]
    window: jax.Array | int,  # int32[]
    *,
    scale: float,
    softcap: float | None = None,
    block: int,
) -> jax.Array:  # [B, T, N, H]
    """Computes attention of new tokens to one layer of a cache, reading what they see of it alone.

    The other arguments are those of `blockwise`. It has no gradient.
    """
    heads, slots = k.shape[2], k.shape[3]
    blocks = Blocks(q.shape[1], min(block, slots), scale, softcap, Setting.present())
    (rows,) = _rows(q, heads, blocks.queries)
    cut = _cut_layouts(layouts, blocks)
    _, second, count = _pairs(cut, window, 1, cut[1].order.shape[0])

    def step(number: jax.Array, carry: Softmax) -> Softmax:
        begin = second[number] * blocks.keys
        start = jnp.minimum(begin, slots - blocks.keys)  # the last block may overlap another one

        def taken(x: jax.Array, axis: int) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(x, start, blocks.keys, axis)

        keys, values = (taken(each[layer], 2).astype(q.dtype) for each in (k, v))
        layout = jax.tree.map(lambda x: taken(x, 1), layouts[1])
        fresh = start + jnp.arange(blocks.keys) >= begin
        logits, seen = _logits(rows, keys, (layouts[0], layout), window, blocks)
        return carry.joined(logits, seen & fresh, values)

    found = jax.lax.fori_loop(0, count, step, Softmax.empty(rows.shape))
    return _tokens(found.mean()[None], q)


def _logits(
    q: jax.Array, k: jax.Array, layouts: Layouts, window, blocks: Blocks
) -> tuple[jax.Array, jax.Array | None]:  # float32[B, K, R, S]; bool, or None where all is seen
    """Returns the scaled and softened logits of a pair of blocks, and which of them are seen."""
    logits = _product("bkrh,bksh->bkrs", q, k) * blocks.scale
    if blocks.softcap is not None:
        logits = jnp.tanh(logits / blocks.softcap) * blocks.softcap
    if layouts is None:
        return logits, None
    seen = mask(*layouts, window)  # [B, Q, S]
    groups = logits.shape[2] // seen.shape[1]
    return logits, jnp.repeat(seen, groups, axis=1)[:, None]


def _pairs(
    layouts: Layouts, window, queries: int, keys: int
) -> tuple[jax.Array, jax.Array, jax.Array | int]:  # int32[P] twice, int32[]
    """Returns the pairs of blocks in which some query sees a key, query by query, and how many.

    The bounds of each block decide, so that some of the pairs may see nothing.
    """
    if layouts is None:
        index = jnp.arange(queries * keys, dtype=jnp.int32)
        return index // keys, index % keys, queries * keys
    query = {name: each[:, None] for name, each in _bounds(layouts[0]).items()}  # [n, 1, B]
    key = _bounds(layouts[1])  # [m, B]
    before = key["first"] <= query["last"]
    near = query["lowest"] - key["highest"] < window
    same = (key["from"] <= query["to"]) & (query["from"] <= key["to"])
    visible = (before & near & same).any(-1)
    first, second = jnp.nonzero(visible, size=queries * keys, fill_value=0)
    return first.astype(jnp.int32), second.astype(jnp.int32), visible.sum(dtype=jnp.int32)


def _bounds(layout: Layout) -> dict[str, jax.Array]:  # int32[n, B] each
    """Returns the least and largest order, position and segment in each block of a layout."""
    valid = layout.segment != PADDING

    def least(x: jax.Array) -> jax.Array:
        return jnp.where(valid, x, FAR).min(-1)

    def largest(x: jax.Array) -> jax.Array:
        return jnp.where(valid, x, -FAR).max(-1)

    return {
        "first": least(layout.order),
        "last": largest(layout.order),
        "lowest": least(layout.position),
        "highest": largest(layout.position),
        "from": least(layout.segment),
        "to": largest(layout.segment),
    }


def _product(axes: str, one: jax.Array, other: jax.Array) -> jax.Array:
    return products.einsum(axes, one, other, jnp.float32)


def _chosen(layouts: Layouts, i: jax.Array, j: jax.Array) -> Layouts:
    """Returns the layouts of one block of queries and one of keys."""
    if layouts is None:
        return None
    query, key = layouts
    return jax.tree.map(lambda x: x[i], query), jax.tree.map(lambda x: x[j], key)


def _cut_layouts(layouts: Layouts, blocks: Blocks) -> Layouts:  # [n, B, Q] and [m, B, S]
    """Cuts layouts into blocks, filled up with padding."""
    if layouts is None:
        return None
    query, key = layouts
    return _cut_layout(query, blocks.queries), _cut_layout(key, blocks.keys)


def _cut_layout(layout: Layout, size: int) -> Layout:
    return jax.tree.map(lambda x: jnp.moveaxis(_cut(x, size, PADDING), 1, 0), layout)


def _cut(x: jax.Array, size: int, fill: int = 0) -> jax.Array:  # [B, T, ...] -> [B, n, size, ...]
    widths = [(0, 0), (0, -x.shape[1] % size)] + [(0, 0)] * (x.ndim - 2)
    padded = jnp.pad(x, widths, constant_values=fill)
    return padded.reshape(x.shape[0], -1, size, *x.shape[2:])


def _rows(x: jax.Array, heads: int, size: int) -> jax.Array:  # [B, T, N, H] -> [n, B, K, R, H]
    """Cuts an array into blocks, whose rows are the tokens' heads that share a key head."""
    cut = _cut(x, size)
    grouped = cut.reshape(*cut.shape[:3], heads, -1, x.shape[-1])  # [B, n, size, K, G, H]
    ordered = grouped.transpose(1, 0, 3, 2, 4, 5)
    return ordered.reshape(*ordered.shape[:3], -1, x.shape[-1])


def _tokens(blocks: jax.Array, like: jax.Array) -> jax.Array:  # [n, B, K, R, H] -> [B, T, N, H]
    """Joins blocks that `_rows` cut into an array of the shape and dtype of another."""
    count, batch, heads, rows, width = blocks.shape
    groups = like.shape[2] // heads
    parted = blocks.reshape(count, batch, heads, rows // groups, groups, width)
    joined = parted.transpose(1, 0, 3, 2, 4, 5).reshape(batch, -1, *like.shape[2:])
    return joined[:, : like.shape[1]].astype(like.dtype)
