"""The fused attention kernels: which there are for a machine, and what each does not support."""

from collections.abc import Callable
from dataclasses import dataclass

import jax

from jaxtune.models import gpu_kernels
from jaxtune.models import splash as tpu
from jaxtune.models.device import EXPLICIT, explicit, platform, vectorised
from jaxtune.models.layout import Layout
from jaxtune.sharding import ways

FEWEST = 128  # tokens, one block of the kernels
# A mask of more than so many times the bytes of the queries is too large for "auto": on an H100,
# cuDNN then takes more memory than the blockwise form (docs/devices.md).
MOST = 2


@dataclass(frozen=True)
class Kernel:
    """A fused attention kernel: where it is taken, what it does not support, and its function.

    Attributes:
      platforms: Platforms on which "auto" takes it.
      obstacle: Returns why it does not support a call, from queries, layout, windows and softcap.
      attend: Computes attention; the arguments are those of `splash.splash`.
      vectorises: Whether it works under `vmap`, as for the members of a population.
      mask: Returns the bytes of the mask that it stores, from queries, layout and windows.
    """

    platforms: tuple[str, ...]
    obstacle: Callable[..., str | None]
    attend: Callable[..., jax.Array]
    vectorises: bool = False
    mask: Callable[..., int] = lambda q, layout, windows: 0


KERNELS = {
    "splash": Kernel(("tpu",), tpu.obstacle, tpu.splash, vectorises=True),
    "cudnn": Kernel(
        ("gpu", "cuda"),
        gpu_kernels.cudnn_obstacle,
        gpu_kernels.cudnn,
        mask=gpu_kernels.cudnn_mask,
    ),
    # By name alone: its masks take more memory than the blockwise form from some 8,000 tokens on.
    "tokamax": Kernel((), gpu_kernels.tokamax_obstacle, gpu_kernels.tokamax),
}


def native(
    q: jax.Array,  # [B, T, N, H]
    layout: Layout | None,
    windows: tuple[int | None, ...],
) -> str | None:
    """Returns the kernel that "auto" takes on the machine that the call is compiled for, if any.

    It is None, too, where the kernel's mask would be too large; see `MOST`.
    """
    of = platform(q)
    name = next((name for name, kernel in KERNELS.items() if of in kernel.platforms), None)
    if name is None:
        return None
    queries = q.size * q.dtype.itemsize // ways(q, "tensor")  # the mask is not split by heads
    return name if KERNELS[name].mask(q, layout, windows) <= MOST * queries else None


def obstacle(
    name: str,  # one of `KERNELS`
    q: jax.Array,  # [B, T, N, H]
    query: Layout | None,
    key: Layout | None,
    windows: tuple[int | None, ...],
    softcap: float | None,
) -> str | None:
    """Returns the reason why a kernel does not support a call, or None if it does.

    Args:
      name: One of `KERNELS`.
      q: Queries; only shape, dtype and sharding matter.
      query: Layout of the queries; None: every query sees every key.
      key: Layout of the keys; None together with that of the queries.
      windows: Window of each kind of layer in tokens, or None.
      softcap: Limit on the logits, or None.

    Returns:
      A clause that completes "does not support this call: …", or None.
    """
    if query is not key:
        return "queries and keys have different layouts, as when decoding with a KV cache"
    if q.shape[1] < FEWEST:
        return f"{q.shape[1]} tokens are fewer than one block of {FEWEST}"
    if explicit(q):
        return EXPLICIT
    kernel = KERNELS[name]
    if vectorised() and not kernel.vectorises:
        return "it does not compute several members of a population at once"
    return kernel.obstacle(q, query, windows, softcap)
