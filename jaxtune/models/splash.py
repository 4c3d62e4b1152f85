"""Attention with the splash kernel of JAX on TPUs."""

from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune.models.device import by_window, lengthen, spread
from jaxtune.models.layout import PADDING, Layout, together
from jaxtune.sharding import mesh_of

LANES = 128  # block lengths are multiples of this
BLOCK = 512  # longest block: longer ones overflow a v5e's vector memory with heads of size 256


def obstacle(
    q: jax.Array,  # [B, T, N, H]
    layout: Layout | None,
    windows: tuple[int | None, ...],
    softcap: float | None,
) -> str | None:
    """Returns the reason why the kernel does not support a call, as `fused.obstacle` does."""
    if layout is not None and not layout.causal:
        return "some tokens attend to later ones, as in a prefix"
    asked = jax.config.jax_default_matmul_precision
    if asked not in (None, "default"):
        return f"its products have JAX's default precision, and {asked!r} is asked for"
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

    def run(q, k, v, segment, kind):
        def kernel(window, *arrays):
            seen = (layout is not None, window)
            built = _kernel(q.shape[2], padded, block, *seen, softcap, interpret)
            return jax.vmap(built)(*arrays)

        heads_first = [lengthen(x, padded, 0).swapaxes(1, 2) for x in (q, k, v)]
        ids = None if segment is None else _segment_ids(lengthen(segment, padded, PADDING))
        attended = by_window(kernel, windows, kind, length, *heads_first, ids)
        return attended.swapaxes(1, 2)[:, :length]

    if layout is None and padded > length:  # the padding at the end must not be seen
        segment = together(q.shape[:2]).segment
    else:
        segment = None if layout is None or layout.whole else layout.segment
    return spread(run, q, k, v, segment, kind)


def _blocks(length: int) -> tuple[int, int]:
    """Returns the length of a block, and the sequence length padded to whole blocks.

    Blocks are of equal length, and as few as `BLOCK` allows.
    """
    count = -(-length // BLOCK)
    block = -(-length // (count * LANES)) * LANES
    return block, count * block


def _segment_ids(segment: jax.Array):
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    return SegmentIds(segment, segment)


@cache  # building scans the mask block by block, and a cached kernel is compiled only once
def _kernel(
    heads: int, length: int, block: int, causal: bool, window, softcap, interpret: bool
) -> Callable:
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
