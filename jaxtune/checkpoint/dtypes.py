"""The dtypes of weights and activations, and the meaning of "auto" for weights.

"auto" is the default wherever a dtype of weights can be given: in Python, in a config and on the
command line. It stands for the dtype in which the checkpoint stores a leaf, the widest one if its
layers differ.
"""

import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import ml_dtypes  # noqa: F401 (tells NumPy of bfloat16)
import numpy as np

from jaxtune.display.errors import UserError

if TYPE_CHECKING:  # the command line lists the dtypes, and starts without JAX
    from jax.typing import DTypeLike

AUTO = "auto"
DTYPES = ("float32", "bfloat16", "float16")
COMPUTE = (AUTO, "float32", "bfloat16")  # of activations; Gemma's overflow float16


def dtype_name(dtype: "DTypeLike") -> str:
    """Returns the name of a dtype, or "auto"; raises unless weights can be held in it."""
    name = dtype
    if not isinstance(dtype, str):
        with contextlib.suppress(TypeError, ValueError):  # NumPy knows no such dtype
            name = np.dtype(dtype).name
    if name not in (AUTO, *DTYPES):
        raise UserError(f"dtype {name!r}: expected one of {', '.join(DTYPES)} or {AUTO}")
    return name


def activation_dtype(compute: str, held: Iterable[np.dtype], device: Any) -> np.dtype:
    """Returns the dtype of the activations on a device.

    Args:
      compute: one of `COMPUTE`. "auto" takes float32 if a plain weight is float32 or the device
        does not compute in bfloat16, and bfloat16 otherwise.
      held: dtypes of the plain weights.
      device: a device of JAX, which may be only described.

    Returns:
      float32 or bfloat16.
    """
    if compute not in COMPUTE:
        raise UserError(f"compute {compute!r}: expected one of {', '.join(COMPUTE)}")
    if compute != "auto":
        return np.dtype(compute)
    plain = "float32" in map(str, held) or not _computes_bfloat16(device)
    return np.dtype("float32" if plain else "bfloat16")


def _computes_bfloat16(device: Any) -> bool:
    """Returns whether a device multiplies bfloat16, as TPUs do, and NVIDIA GPUs since Ampere."""
    # XLA's CPU backend emulates bfloat16: it computes in float32 and rounds after every operation.
    return device.platform != "cpu" and float(getattr(device, "compute_capability", 8)) >= 8
