"""Attention with the `dot_product_attention` of GPU libraries: JAX (for cuDNN) and tokamax."""

import importlib.util
import logging
from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp

from jaxtune.models.device import at_hand, by_window, capability, lengthen, spread
from jaxtune.models.layout import PADDING, Layout, mask, reach, together

HALVES = (jnp.bfloat16, jnp.float16)
TILE = 64  # tokens of a block of tokamax's kernel
# tokamax's blocks of heads of 256 fit the shared memory of GPUs of these capabilities alone, and
# from 12.0 on the compiler of JAX 0.10 fails on its kernel.
ROOMY, NEWEST = (8.0, 9.0, 10.0), 12.0


def cudnn_obstacle(
    q: jax.Array,  # [B, T, N, H]
    layout: Layout | None,
    windows: tuple[int | None, ...],
    softcap: float | None,
) -> str | None:
    """Returns the reason why cuDNN does not support a call, as `fused.obstacle` does."""
    length, width, known = q.shape[1], q.shape[3], capability(q)
    # Backward, by cuDNN's support matrix; JAX refuses wide heads unless such a GPU is at hand, too.
    widest = 256 if 9 <= known < 10 and at_hand() >= 9 else 128
    if q.dtype not in HALVES:
        return f"it supports bfloat16 and float16, not {q.dtype}"
    if softcap is not None:
        return "it does not support a softcap"
    if known < 8:
        return "it needs an NVIDIA GPU of compute capability 8.0 or later"
    if width % 8 or width > widest:
        return f"the head size {width} is not a multiple of 8 up to {widest}"
    if length % 2 and _masked(layout, windows):
        return (
            "with prefixes, padding, packing or given positions it needs an even length, "
            f"not {length}"
        )
    return None


def cudnn_mask(
    q: jax.Array,  # [B, T, N, H]
    layout: Layout | None,
    windows: tuple[int | None, ...],
) -> int:
    """Returns the bytes of the mask that cuDNN is given, a bias in the dtype of q; 0 if none is."""
    batch, length = q.shape[:2]
    return batch * length**2 * q.dtype.itemsize if _masked(layout, windows) else 0


def tokamax_obstacle(
    q: jax.Array,  # [B, T, N, H]
    layout: Layout | None,
    windows: tuple[int | None, ...],
    softcap: float | None,
) -> str | None:
    """Returns the reason why tokamax does not support a call, as `fused.obstacle` does."""
    width, known = q.shape[3], capability(q)
    widest = 256 if known in ROOMY else 128
    if q.dtype not in HALVES:
        return f"it supports bfloat16 and float16, not {q.dtype}"
    if softcap is not None:
        return "backward, it does not support a softcap"
    if not 8 <= known < NEWEST:
        return f"it needs an NVIDIA GPU of compute capability 8.0 to 11, not {known}"
    if width > widest:
        return f"the head size {width} is larger than {widest}"
    if importlib.util.find_spec("tokamax") is None:
        return "the package tokamax is not installed: pip install tokamax"
    return None


def cudnn(
    q: jax.Array,  # [B, T, N, H]
    k: jax.Array,  # [B, T, K, H]
    v: jax.Array,  # [B, T, K, H]
    layout: Layout | None,  # [B, T]
    *,
    kind: jax.Array,  # int32[]
    windows: tuple[int | None, ...],
    scale: float,
    softcap: None = None,
    implementation: str = "cudnn",  # "xla" takes the same arguments on any machine
) -> jax.Array:  # [B, T, N, H]
    """Computes attention with cuDNN; a padding token sees at least itself.

    It does not work under `vmap`: JAX 0.10 batches the kernel only if every array has the mapped
    axis, and no version up to 0.11 batches its mask. JAX then raises an error of a failed reshape.

    Args:
      q: Queries.
      k: Keys.
      v: Values.
      layout: Layout of queries and keys; None: every query sees every key.
      kind: Index of the layer's window in `windows`.
      windows: Window of each kind of layer in tokens; None sees all earlier tokens.
      scale: Factor of the logits.
      softcap: None; cuDNN has no limit on the logits.
      implementation: Implementation of `jax.nn.dot_product_attention`: "cudnn", or "xla", which
        runs on any machine.

    Returns:
      Attended values of each query head.
    """
    fuse = partial(jax.nn.dot_product_attention, scale=scale, implementation=implementation)
    # The kernel's sequence lengths can express where a row ends, but neither packed sequences nor
    # padding on the left; a mask expresses all of these. It costs a bias [B, 1, T, T] and, in JAX
    # 0.10, the gradient of that bias, both in the dtype of q. The logits of the plain form are
    # larger: they have an axis N and are float32.
    return _attend(fuse, q, k, v, layout, kind, windows)


def tokamax(
    q: jax.Array,  # [B, T, N, H]
    k: jax.Array,  # [B, T, K, H]
    v: jax.Array,  # [B, T, K, H]
    layout: Layout | None,  # [B, T]
    *,
    kind: jax.Array,  # int32[]
    windows: tuple[int | None, ...],
    scale: float,
    softcap: None = None,
) -> jax.Array:  # [B, T, N, H]
    """Computes attention with tokamax's Triton kernel; a padding token sees at least itself.

    The arguments are those of `cudnn`. Backward, the mask is an array of bytes, [T, T] for a window
    and otherwise [B, T, T], and keys and values have a gradient for each query head.
    """
    fuse = partial(_tokamax(), scale=scale, implementation="triton")
    length = q.shape[1]
    padded = -(-length // TILE) * TILE
    if padded > length:
        layout = together(q.shape[:2]) if layout is None else layout
        layout = jax.tree.map(lambda x: lengthen(x, padded, PADDING), layout)
        q, k, v = (lengthen(x, padded, 0) for x in (q, k, v))
    return _attend(fuse, q, k, v, layout, kind, windows)[:, :length]


@cache
def _tokamax() -> Callable:
    """Returns tokamax's attention, which also compiles for a GPU that is not at hand."""
    import tokamax
    from absl import flags

    flags.FLAGS.set_default("tokamax_cross_compile", True)
    if not flags.FLAGS.is_parsed():  # or else it parses the options of our command line
        flags.FLAGS.mark_as_parsed()
    # It warns at every call that its block sizes were not tuned.
    logger = logging.getLogger("absl")
    logger.addFilter(lambda record: "tokamax" not in record.pathname)
    return tokamax.dot_product_attention


def _attend(
    fuse: Callable, q, k, v, layout: Layout | None, kind: jax.Array, windows
) -> jax.Array:  # [B, T, N, H]
    """Calls `fuse`, a `dot_product_attention`, with what it supports of the mask of a layout."""

    def run(q, k, v, seen, kind):
        if seen is not None:
            return fuse(q, k, v, mask=seen, is_causal=layout.causal)
        if layout is None:
            return fuse(q, k, v)
        return by_window(banded, windows, kind, q.shape[1], q, k, v)

    def banded(window, q, k, v):
        local = None if window is None else (window - 1, 0)
        return fuse(q, k, v, is_causal=True, local_window_size=local)

    if not _masked(layout, windows):
        return spread(run, q, k, v, None, kind)
    # cuDNN takes no window together with a bias, so the mask includes the window. Each token sees
    # itself, because padding that sees nothing would return the mean of all values and pass
    # gradients to them.
    itself = jnp.eye(q.shape[1], dtype=bool)
    seen = mask(layout, layout, reach(windows, kind)) | itself
    return spread(run, q, k, v, seen[:, None], kind)


def _masked(layout: Layout | None, windows: tuple[int | None, ...]) -> bool:
    """Returns whether the mask is data: not all keys, nor a band of token indices."""
    if layout is None:
        return False
    return not (layout.causal and layout.whole and (layout.counted or not any(windows)))
