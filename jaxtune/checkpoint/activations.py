"""What a device computes a model in: the dtype of activations and the precision of products."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxtune.checkpoint.dtypes import AUTO
from jaxtune.display.errors import UserError
from jaxtune.quant.precision import check

HALF = "float16"  # of products alone: Gemma's activations overflow it
COMPUTE = (AUTO, "float32", "bfloat16", HALF)  # of activations and their products
# The first compute capability of NVIDIA GPUs whose matrix units take a type; TPUs take bfloat16.
NATIVE = ((8.0, "bfloat16"), (7.0, HALF), (0.0, "float32"))
TPU = 8.0


def computed(
    compute: str, precision: str, held: Iterable[np.dtype], device: Any
) -> tuple[np.dtype, str]:
    """Returns the dtype of the activations on a device, and the precision of their products.

    Args:
      compute: one of `COMPUTE`. "float16" keeps activations in float32 and multiplies them in
        scaled float16. "auto" takes float32 if a plain weight is float32; otherwise bfloat16 if the
        device multiplies it, float16 if it multiplies that instead, and float32 on all others.
      precision: "auto", or a key of `quant.precision.RULES`, which "float16" settles itself.
      held: dtypes of the plain weights.
      device: a device of JAX, which may be only described.

    Returns:
      float32 or bfloat16, and `precision`, or "float16".
    """
    if compute not in COMPUTE:
        raise UserError(f"compute {compute!r}: expected one of {', '.join(COMPUTE)}")
    check(precision)
    if compute == AUTO:
        compute = "float32" if "float32" in map(str, held) else _native(device)
        compute = "float32" if compute == HALF and precision != AUTO else compute
    if compute != HALF:
        return np.dtype(compute), precision
    if precision not in (AUTO, HALF):
        raise UserError(
            f"precision {precision!r} is of products of float32, and compute 'float16' multiplies "
            "in float16: leave precision out, or set compute to 'float32'"
        )
    return np.dtype("float32"), HALF


def _native(device: Any) -> str:
    """Returns the type that a device's matrix units multiply, of those in `COMPUTE`."""
    # XLA's CPU backend emulates bfloat16: it computes in float32 and rounds after every operation.
    if device.platform == "cpu":
        return "float32"
    known = float(getattr(device, "compute_capability", TPU))
    return next(dtype for least, dtype in NATIVE if known >= least)
