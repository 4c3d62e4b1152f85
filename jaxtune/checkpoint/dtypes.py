"""The dtypes of weights, and the meaning of "auto" for them.

"auto" is the default wherever a dtype of weights can be given: in Python, in a config and on the
command line. It stands for the dtype in which the checkpoint stores a leaf, the widest one if its
layers differ.
"""

import contextlib
from typing import TYPE_CHECKING

import ml_dtypes  # noqa: F401 (tells NumPy of bfloat16)
import numpy as np

from jaxtune.display.errors import UserError

if TYPE_CHECKING:  # the command line lists the dtypes, and starts without JAX
    from jax.typing import DTypeLike

AUTO = "auto"
DTYPES = ("float32", "bfloat16", "float16")


def dtype_name(dtype: "DTypeLike") -> str:
    """Returns the name of a dtype, or "auto"; raises unless weights can be held in it."""
    name = dtype
    if not isinstance(dtype, str):
        with contextlib.suppress(TypeError, ValueError):  # NumPy knows no such dtype
            name = np.dtype(dtype).name
    if name not in (AUTO, *DTYPES):
        raise UserError(f"dtype {name!r}: expected one of {', '.join(DTYPES)} or {AUTO}")
    return name
