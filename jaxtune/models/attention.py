"""Grouped-query softmax attention: the plain form, and the choice of another one instead."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxtune.display.errors import UserError
from jaxtune.models import blockwise, device, fused
from jaxtune.models.cache import CachedKV
from jaxtune.models.layout import Layout, mask, reach
from jaxtune.quant import products

UNSEEN = -2.0e38  # finite, so that a query that sees no key returns a mean and not NaN
IMPLEMENTATIONS = ("auto", "plain", "blockwise", *fused.KERNELS)
FORWARD = "forward"  # "blockwise" without a gradient of its own, to differentiate in forward mode
SHORT = 512  # queries up to which the plain form is as fast as the blockwise one
LONG = 1024  # slots of a cache from which on it is read in blocks
Implementation = (
    str | Callable[..., jax.Array]
)  # one of `IMPLEMENTATIONS`, `FORWARD`, or a function


def attend(
    q: jax.Array,  # [B, T, N, H]
    k: jax.Array,  # [B, S, K, H], N a multiple of K
    v: jax.Array,  # [B, S, K, H]
    query: Layout | None,  # [B, T]
    key: Layout | None,  # [B, S]
    *,
    kind: jax.Array,  # int32[], which of `windows` this layer has
    windows: tuple[int | None, ...],
    scale: float,
    softcap: float | None = None,
    implementation: Implementation = "auto",
) -> jax.Array:  # [B, T, N, H]
    """Computes the attention of a layer.

    Args:
      q: Queries, rotated and not scaled.
      k: Keys, rotated.
      v: Values.
      query: Layout of the queries; None: every query sees every key.
      key: Layout of the keys; the same object as `query` unless there is a cache.
      kind: Index of the layer's window; an array, because one traced layer serves all kinds.
      windows: Window of each kind of layer in tokens; None sees all earlier tokens.
      scale: Factor of the logits.
      softcap: Limit of `soften` on the scaled logits; None for no limit.
      implementation: "auto" takes the fused kernel of the machine if it supports the call without
        a large mask, and otherwise the blockwise form, or the plain one for few tokens. A kernel
        by name that does not support the call is an error. A function is called as `plain` is.

    Returns:
      Attended values of each query head.
    """
    limits = dict(scale=scale, softcap=softcap)
    given = callable(implementation)
    name = "" if given else choose(implementation, q, query, key, windows, softcap)
    if name in fused.KERNELS:
        form = fused.KERNELS[name].attend
        return form(q, k, v, query, kind=kind, windows=windows, **limits)
    window = reach(windows, kind)
    if name in ("blockwise", FORWARD):
        layouts = None if query is None else (query, key)
        return in_blocks(q, k, v, layouts, window, **limits, forward=name == FORWARD)
    seen = None if query is None else mask(query, key, window)
    return (implementation if given else plain)(q, k, v, seen, **limits)


def attend_cached(
    q: jax.Array,  # [B, T, N, H], rotated
    stored: CachedKV,
    layer: jax.Array,  # int32[]
    query: Layout,  # [B, T]
    key: Layout,  # [B, S]
    *,
    kind: jax.Array,
    windows: tuple[int | None, ...],
    scale: float,
    softcap: float | None = None,
    implementation: Implementation = "auto",
) -> jax.Array:  # [B, T, N, H]
    """Computes the attention of new tokens to one layer of a KV cache.

    Of a long cache only those blocks are read in which some query sees a key. The other arguments
    are those of `attend`.
    """
    how = dict(scale=scale, softcap=softcap)
    long = q.shape[1] < SHORT and key.order.shape[1] >= LONG
    if implementation in ("auto", "blockwise") and long:
        block = blockwise.block_of(q, device.platform(q))
        window = reach(windows, kind)
        given = (q, stored.k, stored.v, layer, (query, key), window)
        return blockwise.attend_cache(*given, **how, block=block)
    k, v = stored.of(layer, q.dtype)
    how |= dict(kind=kind, windows=windows, implementation=implementation)
    return attend(q, k, v, query, key, **how)


def in_blocks(
    q: jax.Array,  # [B, T, N, H]
    k: jax.Array,  # [B, S, K, H]
    v: jax.Array,  # [B, S, K, H]
    layouts: blockwise.Layouts,
    window: jax.Array,  # int32[]
    **how: Any,
) -> jax.Array:  # [B, T, N, H]
    """Computes `blockwise.blockwise`, on each device for its own rows and heads."""
    machine = device.platform(q)

    def run(q, k, v, layouts, window):
        block = blockwise.block_of(q, machine)
        return blockwise.blockwise(q, k, v, layouts, window, **how, block=block)

    return device.spread(run, q, k, v, layouts, window)


def choose(
    implementation: str,
    q: jax.Array,  # [B, T, N, H]
    query: Layout | None,
    key: Layout | None,
    windows: tuple[int | None, ...],
    softcap: float | None,
) -> str:
    """Returns the name of the implementation that `attend` uses for a call.

    Args:
      implementation: One of `IMPLEMENTATIONS`, or `FORWARD`.
      q: Queries; only shape, dtype and sharding matter.
      query: Layout of the queries.
      key: Layout of the keys.
      windows: Window of each kind of layer in tokens, or None.
      softcap: Limit on the logits, or None.

    Returns:
      Another of `IMPLEMENTATIONS` than "auto". Raises ValueError if a kernel by name does not
      support the call.
    """
    if implementation not in (*IMPLEMENTATIONS, FORWARD):
        known = ", ".join(IMPLEMENTATIONS)
        raise UserError(f"attention {implementation!r}: expected one of {known}")

    def obstacle(name: str) -> str | None:
        if name == "plain":
            return None
        if name in ("blockwise", FORWARD):
            return device.EXPLICIT if device.explicit(q) else None
        return fused.obstacle(name, q, query, key, windows, softcap)

    if implementation == "auto":
        kernel = fused.native(q, query, windows)
        among = (kernel, "blockwise" if q.shape[1] >= SHORT else None, "plain")
        return next(name for name in among if name and not obstacle(name))
    if reason := obstacle(implementation):
        raise UserError(
            f"attention {implementation!r} does not support this call: {reason}. "
            "Change this, or set attention to 'plain' or 'auto'."
        )
    return implementation


def plain(
    q: jax.Array,  # [B, T, N, H]
    k: jax.Array,  # [B, S, K, H]
    v: jax.Array,  # [B, S, K, H]
    seen: jax.Array | None,  # bool[B, T, S]; None sees all
    *,
    scale: float,
    softcap: float | None = None,
) -> jax.Array:  # [B, T, N, H]
    """Computes attention as written in the papers, with logits and softmax in float32.

    Args:
      q: Queries.
      k: Keys.
      v: Values, whose dtype the attention weights are cast to.
      seen: Attention mask; None sees all.
      scale: Factor of the logits.
      softcap: Limit of `soften` on the scaled logits; None for no limit.

    Returns:
      Attended values of each query head.
    """
    shares = _shares(q, k, seen, scale, softcap).astype(v.dtype)
    return products.einsum("bktgs,bskh->btkgh", shares, v).reshape(q.shape)


def weights(
    q: jax.Array,  # [B, T, N, H]
    k: jax.Array,  # [B, S, K, H]
    seen: jax.Array | None,  # bool[B, T, S]
    *,
    scale: float,
    softcap: float | None = None,
) -> jax.Array:  # float32[B, N, T, S]
    """Returns the attention weights of each query head; the arguments are those of `plain`."""
    shares = jnp.moveaxis(_shares(q, k, seen, scale, softcap), 3, 2)  # [B, K, G, T, S]
    return shares.reshape(q.shape[0], q.shape[2], *shares.shape[3:])


def _shares(
    q: jax.Array, k: jax.Array, seen: jax.Array | None, scale: float, softcap: float | None
) -> jax.Array:  # float32[B, K, T, G, S], with G = N / K query heads for each key head
    batch, length, heads, width = q.shape
    grouped = q.reshape(batch, length, k.shape[2], heads // k.shape[2], width)
    logits = products.einsum("btkgh,bskh->bktgs", grouped, k, jnp.float32)
    logits = soften(logits * scale, softcap)
    if seen is not None:
        logits = jnp.where(seen[:, None, :, None], logits, UNSEEN)
    return jax.nn.softmax(logits, axis=-1)


def soften(logits: jax.Array, cap: float | None) -> jax.Array:
    """Caps logits smoothly to (-cap, cap) by tanh; None returns them unchanged."""
    return logits if cap is None else jnp.tanh(logits / cap) * cap
