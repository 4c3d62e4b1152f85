"""Softmax attention over grouped heads: the plain form, and when a fused kernel replaces it."""

import jax
import jax.numpy as jnp

from jaxtune.models import fused
from jaxtune.models.layout import Layout, mask, reach

UNSEEN = -2.0e38  # finite, so that a row which sees nothing gives a mean and not NaN
IMPLEMENTATIONS = ("auto", "plain", "splash", "cudnn")


def attend(
    q: jax.Array,  # [B, T, N, H]
    k: jax.Array,  # [B, S, K, H], N a multiple of K
    v: jax.Array,  # [B, S, K, H]
    query: Layout,  # [B, T]
    key: Layout,  # [B, S]
    *,
    kind: jax.Array,  # int32[], which of `windows` this layer has
    windows: tuple[int | None, ...],
    scale: float,
    softcap: float | None = None,
    implementation: str = "auto",  # one of IMPLEMENTATIONS
) -> jax.Array:  # [B, T, N, H]
    """Attention as every decoder layer computes it.

    "auto" is the fused kernel of the machine if it can serve the call, and the plain form if not.
    """
    name = choose(implementation, q, query, key, windows, softcap)
    how = dict(kind=kind, windows=windows, scale=scale)
    if name == "splash":
        return fused.splash(q, k, v, query, **how, softcap=softcap)
    if name == "cudnn":
        return fused.cudnn(q, k, v, query, **how)
    seen = mask(query, key, reach(windows, kind))
    return plain(q, k, v, seen, scale=scale, softcap=softcap)


def choose(
    implementation: str,
    q: jax.Array,  # [B, T, N, H]
    query: Layout,
    key: Layout,
    windows: tuple[int | None, ...],
    softcap: float | None,
) -> str:
    """The implementation that will serve a call; a named one that cannot is an error."""
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"attention is {implementation!r}; it can be one of {IMPLEMENTATIONS}")
    name = fused.native(q) if implementation == "auto" else implementation
    if name == "plain":
        return name
    reason = fused.obstacle(name, q, query, key, windows, softcap)
    if reason and implementation != "auto":
        raise ValueError(
            f"attention {name!r} cannot serve this call: {reason}. "
            "Change that, or set attention to 'plain' or 'auto'."
        )
    return "plain" if reason else name


def plain(
    q: jax.Array,  # [B, T, N, H]
    k: jax.Array,  # [B, S, K, H]
    v: jax.Array,  # [B, S, K, H]
    seen: jax.Array | None,  # bool[B, T, S]; None sees all
    *,
    scale: float,
    softcap: float | None = None,
) -> jax.Array:  # [B, T, N, H]
    """Attention as written in the papers; logits and softmax in float32."""
    batch, length, heads, width = q.shape
    grouped = q.reshape(batch, length, k.shape[2], heads // k.shape[2], width)
    logits = jnp.einsum("btkgh,bskh->bktgs", grouped, k, preferred_element_type=jnp.float32)
    logits = soften(logits * scale, softcap)
    if seen is not None:
        logits = jnp.where(seen[:, None, :, None], logits, UNSEEN)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bktgs,bskh->btkgh", weights, v).reshape(q.shape)


def soften(logits: jax.Array, cap: float | None) -> jax.Array:
    """Squeeze logits smoothly into (-cap, cap); None leaves them."""
    return logits if cap is None else jnp.tanh(logits / cap) * cap
