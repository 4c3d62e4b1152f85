"""Attention with the splash kernel of JAX on TPUs."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune.models.device import by_window, lengthen, spread
from jaxtune.models.layout import PADDING, Layout, together
from jaxtune.quant.precision import Setting
from jaxtune.sharding import mesh_of

PRECISIONS = (None, "default", "highest", "float32")  # JAX's settings that compile in float32
LANES = 128  # block lengths are multiples of this
BLOCK = 512  # longest block: longer ones overflow a v5e's vector memory with heads of size 256


def obstacle(
    q: jax.Array,  # [B, T, N, H]
    layout: Layout | None,
    windows: tuple[int | None, ...],
    softcap: float | None,
) -> str | None:
    """Returns the reason why the kernel does not support a call, as `fused.obstacle` does."""
    if layout is not None and not layout.causal and any(w and w < q.shape[1] for w in windows):
        return "some tokens attend to later ones, as in a prefix, and a window limits others"
    asked = jax.config.jax_default_matmul_precision
    if q.dtype == jnp.float32 and asked not in PRECISIONS:
        return f"its products of float32 have the default or the highest precision, not {asked!r}"
    if q.dtype not in (jnp.bfloat16, jnp.float32):
        return f"it supports bfloat16 and float32, not {q.dtype}"
    if layout is not None and not layout.counted and any(windows):
        return "its windows count tokens, but positions were given"
    if mesh_of(q).empty and jax.device_count() > 1:
        return "with several devices it needs a mesh; place the arrays on one"
    return None


def splash(
    q: jax.Array,  # [B, T, N, H]
    k: jax.Array,  # [B, T, K, H]
    v: jax.Array,  # [B, T, K, H]
    layout: Layout | None,  # [B, T]
    *,
    kind: jax.Array,  # int32[]
    windows: tuple[int | None, ...],
    scale: float,
    softcap: float | None = None,
    interpret: bool = False,  # on a CPU, slowly
) -> jax.Array:  # [B, T, N, H]
    """Computes attention with the TPU kernel; a padding token sees the padding before it.

    Args:
      q: Queries.
      k: Keys.
      v: Values.
      layout: Layout of queries and keys; None: every query sees every key.
      kind: Index of the layer's window in `windows`.
      windows: Window of each kind of layer in tokens; None sees all earlier tokens.
      scale: Factor of the logits.
      softcap: Limit on the logits, or None.
      interpret: Whether to run the kernel in Pallas' interpreter, which is slow, on a CPU.

    Returns:
      Attended values of each query head.
    """
    length = q.shape[1]
    block, padded = _blocks(length)
    # The kernel takes no scale. Scaling q adds a rounding, unless the scale is a power of two.
    q = (q.astype(jnp.float32) * scale).astype(q.dtype)

    # Products of bfloat16 have one precision, and the kernel does not compile at another.
    setting = Setting.present() if q.dtype == jnp.float32 else Setting("default", halves=False)

    def run(q, k, v, rows, kind):
        def kernel(window, *arrays):
            seen = (layout is not None, window)
            built = _kernel(q.shape[2], padded, block, *seen, softcap, interpret)
            return _as_set(jax.vmap(partial(_of_row, built)), setting, *arrays)

        def filled(x, value):
            return None if x is None else lengthen(x, padded, value)

        segment, last = filled(rows[0], PADDING), filled(rows[1], padded - 1)
        heads_first = [lengthen(x, padded, 0).swapaxes(1, 2) for x in (q, k, v)]
        attended = by_window(kernel, windows, kind, length, *heads_first, segment, last)
        return attended.swapaxes(1, 2)[:, :length]

    if layout is None and padded > length:  # the padding at the end must not be seen
        segment = together(q.shape[:2]).segment
    else:
        segment = None if layout is None or layout.whole else layout.segment
    last = None if layout is None or layout.causal else _last_seen(layout)
    return spread(run, q, k, v, (segment, last), kind)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _as_set(run: Callable, setting: Setting, *arrays: Any) -> jax.Array:
    """Calls `run`, both whose passes are traced in a setting of the precision."""
    with setting.entered():
        return run(*arrays)


def _kept(run: Callable, setting: Setting, *arrays: Any) -> tuple[jax.Array, Callable]:
    with setting.entered():
        return jax.vjp(run, *arrays)


def _pulled(run: Callable, setting: Setting, pull: Callable, gradient: jax.Array) -> tuple:
    # JAX traces this once the call is over, where its precision need not be set any more.
    with setting.entered():
        return pull(gradient)


_as_set.defvjp(_kept, _pulled)


def _blocks(length: int) -> tuple[int, int]:
    """Returns the length of a block, and the sequence length padded to whole blocks.

    Blocks are of equal length, and as few as `BLOCK` allows.
    """
    count = -(-length // BLOCK)
    block = -(-length // (count * LANES)) * LANES
    return block, count * block


def _last_seen(layout: Layout) -> jax.Array:  # int32[B, T]
    """Returns the index of the last key that each query sees by its order, which never falls."""
    after = jax.vmap(partial(jnp.searchsorted, side="right"))(layout.order, layout.order)
    return after.astype(jnp.int32) - 1


def _of_row(kernel: Any, q, k, v, segment, last) -> jax.Array:  # [N, T, H]
    """Calls a kernel on one row, whose queries see keys of their segment, up to a last one."""
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    ids = None if segment is None else SegmentIds(segment, segment)
    return (kernel if last is None else _up_to(last, kernel))(q, k, v, ids)


def _up_to(last: jax.Array, kernel: Any) -> Any:
    """Returns a causal kernel whose queries see the keys up to given indices, int32[T].

    A causal kernel compares indices of keys with those of queries, which are an array. Without the
    arrays that leave out blocks, all blocks are computed.
    """
    everywhere = dict.fromkeys(("data_next", "block_mask", "mask_next", "partial_mask_blocks"))
    names = ("fwd_mask_info", "dq_mask_info", "dkv_mask_info")
    infos = [getattr(kernel, name)._replace(**everywhere, q_sequence=last) for name in names]
    return type(kernel)(*infos, **kernel.kwargs)


@cache  # building scans the mask block by block, and a cached kernel is compiled only once
def _kernel(
    heads: int, length: int, block: int, causal: bool, window, softcap, interpret: bool
) -> Any:
    """Returns the splash kernel of one sequence.

    The kernel maps q [N, T, H], k [K, T, H], v [K, T, H] and segment ids to [N, T, H].
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    shape = (length, length)
    head = library.CausalMask(shape) if causal else library.FullMask(shape)
    if window is not None:
        head = library.LocalMask(shape, (window - 1, 0), offset=0)
    with jax.ensure_compile_time_eval():
        kernel = library.make_splash_mha(
            library.MultiHeadMask([head] * heads),
            block_sizes=library.BlockSizes(*[block] * 8),
            head_shards=1,
            q_seq_shards=1,
            attn_logits_soft_cap=softcap,
            interpret=interpret,
        )
    return jax.tree.map(np.asarray, kernel)  # NumPy arrays, as the cache serves all backends
