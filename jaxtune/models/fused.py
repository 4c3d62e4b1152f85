"""Causal attention with the fused kernels of JAX: splash on TPUs, cuDNN on NVIDIA GPUs."""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxtune.models.layout import PADDING, Layout, mask, reach
from jaxtune.sharding import CAPABILITY, mesh_of

NATIVE = {"tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}  # platform -> its kernel
LANES = 128  # block lengths of splash are multiples of this
EXPLICIT = "the mesh has explicit axes; make it with axis_types=AxisType.Auto"
BLOCK = 512  # longest block: longer ones overflow a v5e's vector memory with heads of size 256


def native(q: jax.Array) -> str | None:
    """Returns the kernel of the machine that the call is compiled for, or None without one."""
    return NATIVE.get(platform(q))


def platform(q: jax.Array) -> str:
    """Returns the platform that the call is compiled for."""
    # The mesh comes before the default backend: a step can be compiled for another machine.
    device = mesh_of(q).abstract_device
    return device.platform if device else jax.default_backend()


def explicit(q: jax.Array) -> bool:
    """Returns whether the mesh of an array has explicit axes, which `spread` cannot split."""
    return AxisType.Explicit in mesh_of(q).axis_types


def obstacle(
    name: str,  # "splash" or "cudnn"
    q: jax.Array,  # [B, T, N, H]
    query: Layout,
    key: Layout,
    windows: tuple[int | None, ...],
    softcap: float | None,
) -> str | None:
    """Returns the reason why a kernel does not support a call, or None if it does.

    Args:
      name: "splash" or "cudnn".
      q: Queries; only shape, dtype and sharding matter.
      query: Layout of the queries.
      key: Layout of the keys.
      windows: Window of each kind of layer in tokens, or None.
      softcap: Limit on the logits, or None.

    Returns:
      A clause that completes "does not support this call: …", or None.
    """
    if query is not key:
        return "queries and keys have different layouts, as when decoding with a KV cache"
    if not query.causal:
        return "some tokens attend to later ones, as in a prefix"
    if q.shape[1] < LANES:
        return f"{q.shape[1]} tokens are fewer than one block of {LANES}"
    if explicit(q):
        return EXPLICIT
    if name == "splash":
        return _splash_obstacle(q, query, windows)
    return _cudnn_obstacle(q, query, windows, softcap)


def splash(
    q: jax.Array,  # [B, T, N, H]
    k: jax.Array,  # [B, T, K, H]
    v: jax.Array,  # [B, T, K, H]
    layout: Layout,  # [B, T]
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
      layout: Layout of queries and keys.
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
            built = _kernel(q.shape[2], padded, block, window, softcap, interpret)
            return jax.vmap(built)(*arrays)

        heads_first = [_lengthen(x, padded, 0).swapaxes(1, 2) for x in (q, k, v)]
        ids = None if segment is None else _segment_ids(_lengthen(segment, padded, PADDING))
        attended = _by_window(kernel, windows, kind, length, *heads_first, ids)
        return attended.swapaxes(1, 2)[:, :length]

    return spread(run, q, k, v, None if layout.whole else layout.segment, kind)


def cudnn(
    q: jax.Array,  # [B, T, N, H]
    k: jax.Array,  # [B, T, K, H]
    v: jax.Array,  # [B, T, K, H]
    layout: Layout,  # [B, T]
    *,
    kind: jax.Array,  # int32[]
    windows: tuple[int | None, ...],
    scale: float,
    implementation: str = "cudnn",  # "xla" takes the same arguments on any machine
) -> jax.Array:  # [B, T, N, H]
    """Computes attention with the GPU kernel; a padding token sees at least itself.

    It does not work under `vmap`: JAX 0.10 batches the kernel only if every array has the mapped
    axis, and no version up to 0.11 batches its mask. JAX then raises an error of a failed reshape.

    Args:
      q: Queries.
      k: Keys.
      v: Values.
      layout: Layout of queries and keys.
      kind: Index of the layer's window in `windows`.
      windows: Window of each kind of layer in tokens; None sees all earlier tokens.
      scale: Factor of the logits.
      implementation: Implementation of `jax.nn.dot_product_attention`: "cudnn", or "xla", which
        runs on any machine.

    Returns:
      Attended values of each query head.
    """
    fuse = partial(
        jax.nn.dot_product_attention, is_causal=True, scale=scale, implementation=implementation
    )

    def run(q, k, v, seen, kind):
        if seen is not None:
            return fuse(q, k, v, mask=seen)
        return _by_window(banded, windows, kind, q.shape[1], q, k, v)

    def banded(window, q, k, v):
        return fuse(q, k, v, local_window_size=None if window is None else (window - 1, 0))

    if _is_band(layout, windows):
        return spread(run, q, k, v, None, kind)
    # The kernel's sequence lengths can express where a row ends, but neither packed sequences nor
    # padding on the left; a mask expresses all of these. It costs a bias [B, 1, T, T] and, in JAX
    # 0.10, the gradient of that bias, both in the dtype of q. The logits of the plain form are
    # larger: they have an axis N and are float32. The kernel takes no window together with a bias,
    # so the mask includes the window. Each token sees itself, because padding that sees nothing
    # would return the mean of all values and pass gradients to them.
    itself = jnp.eye(q.shape[1], dtype=bool)
    seen = mask(layout, layout, reach(windows, kind)) | itself
    return spread(run, q, k, v, seen[:, None], kind)


def _splash_obstacle(q, layout: Layout, windows) -> str | None:
    asked = jax.config.jax_default_matmul_precision
    if asked not in (None, "default"):
        return f"its products have JAX's default precision, and {asked!r} is asked for"
    if q.dtype not in (jnp.bfloat16, jnp.float32):
        return f"it supports bfloat16 and float32, not {q.dtype}"
    if not layout.counted and any(windows):
        return "its windows count tokens, but positions were given"
    if mesh_of(q).empty and jax.device_count() > 1:
        return "with several devices it needs a mesh; place the arrays on one"
    return None


def _cudnn_obstacle(q, layout: Layout, windows, softcap: float | None) -> str | None:
    length, width, known = q.shape[1], q.shape[3], capability(q)
    # Backward, by cuDNN's support matrix; JAX refuses wide heads unless such a GPU is at hand, too.
    widest = 256 if 9 <= known < 10 and _at_hand() >= 9 else 128
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"it supports bfloat16 and float16, not {q.dtype}"
    if softcap is not None:
        return "it does not support a softcap"
    if known < 8:
        return "it needs an NVIDIA GPU of compute capability 8.0 or later"
    if width % 8 or width > widest:
        return f"the head size {width} is not a multiple of 8 up to {widest}"
    if length % 2 and not _is_band(layout, windows):
        return f"with padding, packing or given positions it needs an even length, not {length}"
    return None


def capability(q: jax.Array) -> float:
    """Returns the compute capability of the GPU that the call is compiled for; 0 of other devices.

    Where the GPU is not known, it is 8.0, the lowest that is supported.
    """
    device = mesh_of(q).abstract_device
    if device is not None and device.device_kind in CAPABILITY:
        return _number(CAPABILITY[device.device_kind])
    return _at_hand() if jax.default_backend() == "gpu" else 8.0


def _at_hand() -> float:
    """Returns the compute capability of this machine's GPU; 0 of other devices."""
    return _number(getattr(jax.local_devices()[0], "compute_capability", None))


def _number(capability: str | None) -> float:
    return float(capability) if str(capability).replace(".", "").isdigit() else 0.0


def _is_band(layout: Layout, windows) -> bool:
    """Returns whether the mask depends on token indices only: causal, perhaps with a window."""
    return layout.whole and (layout.counted or not any(windows))


def _by_window(run: Callable, windows, kind: jax.Array, length: int, *arrays) -> jax.Array:
    """Calls `run(window, *arrays)` with the window of a layer kind.

    Kernels need the window while tracing, but the layer scan has only the array `kind`, so
    `jax.lax.switch` selects among one branch per distinct window. Windows of at least `length`
    tokens count as None.
    """
    windows = [None if w is None or w >= length else w for w in windows]
    distinct = list(dict.fromkeys(windows))
    if len(distinct) == 1:
        return run(distinct[0], *arrays)
    branch = jnp.asarray([distinct.index(w) for w in windows], jnp.int32)[kind]
    return jax.lax.switch(branch, [partial(run, w) for w in distinct], *arrays)


def spread(run: Callable, q, k, v, rows: Any, kind: jax.Array) -> jax.Array:
    """Calls `run` on each device's shard of batch and heads: XLA cannot partition a kernel.

    `rows` is a tree of arrays whose first axis is the batch, or None, and `kind` the same anywhere.
    """
    mesh = mesh_of(q)
    axes = zip(mesh.axis_names, mesh.axis_types, strict=True)
    automatic = {name: mesh.shape[name] for name, of in axes if of == AxisType.Auto}
    if math.prod(automatic.values()) == 1:
        return run(q, k, v, rows, kind)
    batch = _dividing(automatic, ("data", "fsdp"), q.shape[0])
    heads = P(batch, None, _dividing(automatic, ("tensor",), k.shape[2]))
    return jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(heads, heads, heads, P(batch), P()),
        out_specs=heads,
        axis_names=set(automatic),
        check_vma=False,  # a Pallas call does not declare which mesh axes its result varies over
    )(q, k, v, rows, kind)


def _dividing(sizes: dict[str, int], names: tuple[str, ...], count: int) -> tuple[str, ...]:
    """Returns the axes of `names` that the mesh has and whose sizes together divide `count`."""
    taken = ()
    for name in names:
        if name in sizes and count % math.prod(sizes[each] for each in (*taken, name)) == 0:
            taken += (name,)
    return taken


def _blocks(length: int) -> tuple[int, int]:
    """Returns the length of a block, and the sequence length padded to whole blocks.

    Blocks are of equal length, and as few as `BLOCK` allows.
    """
    count = -(-length // BLOCK)
    block = -(-length // (count * LANES)) * LANES
    return block, count * block


def _lengthen(x: jax.Array, length: int, value: int) -> jax.Array:  # [B, T, ...]
    widths = [(0, 0), (0, length - x.shape[1])] + [(0, 0)] * (x.ndim - 2)
    return jnp.pad(x, widths, constant_values=value)


def _segment_ids(segment: jax.Array):
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    return SegmentIds(segment, segment)


@cache  # building scans the mask block by block, and a cached kernel is compiled only once
def _kernel(heads: int, length: int, block: int, window, softcap, interpret: bool) -> Callable:
    """Returns the splash kernel of one sequence.

    The kernel maps q [N, T, H], k [K, T, H], v [K, T, H] and segment ids to [N, T, H].
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    shape = (length, length)
    head = library.CausalMask(shape)
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
