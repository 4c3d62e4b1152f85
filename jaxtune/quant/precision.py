"""The precision of products: what each name of `model.precision` means.

Accelerators multiply float32 arrays in fewer bits unless a program says otherwise. This table is
the one place that says so; `models/programs.py` has the doors through which a rule reaches the
products of a program while it is traced. Products of bfloat16 arrays are the same under every rule.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import jax
import numpy as np
from jax.typing import DTypeLike

from jaxtune.display.errors import UserError

AUTO = "auto"
GPUS = ("gpu", "cuda")  # names of the platform, as backends and devices give it


@dataclass(frozen=True)
class Rule:
    """How float32 arrays are multiplied.

    Attributes:
      matmul: What `jax.default_matmul_precision` takes; None leaves JAX's own setting as it is.
      passes: Passes in bfloat16 that a product takes on a TPU.
      tf32: Whether a GPU with TF32 rounds what it multiplies to the 10 bits of TF32.
      halves: Whether products of `quant.products` are computed in float16, which is scaled.
    """

    matmul: str | None
    passes: int
    tf32: bool
    halves: bool = False

    def told(self, platform: str, tf32: bool = True) -> str:
        """Returns how a device multiplies float32; `tf32` says whether a GPU has TF32."""
        if self.halves:
            return "in scaled float16, summed in float32"
        if platform == "tpu":
            return f"in {self.passes} bfloat16 pass{'es' if self.passes > 1 else ''}"
        return "in TF32" if platform in GPUS and tf32 and self.tf32 else "in float32"

    def entered(self) -> contextlib.AbstractContextManager:
        """Returns a context; products that are traced in it follow the rule."""
        matmul = self.matmul or jax.config.jax_default_matmul_precision
        return Setting(matmul, self.halves).entered()


@dataclass(frozen=True)
class Setting:
    """The precision of products where a program is traced, for what is traced later on.

    Attributes:
      matmul: JAX's own setting.
      halves: As in `Rule`.
    """

    matmul: str | None
    halves: bool

    @classmethod
    def present(cls) -> "Setting":
        """Returns the setting that is in force."""
        return cls(jax.config.jax_default_matmul_precision, in_halves())

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Puts the setting in force for what is traced in the context."""
        with jax.default_matmul_precision(self.matmul), _HALVES(self.halves):
            yield


def in_halves() -> bool:
    """Returns whether products are computed in float16, which is scaled."""
    return _HALVES.value


_HALVES = jax.make_user_context(default_value=False)  # part of the key of compiled programs
_HIGH = Rule("high", passes=3, tf32=True)
RULES: Mapping[str, Rule] = {
    "highest": Rule("highest", passes=6, tf32=False),
    "tf32": _HIGH,  # JAX has one setting for both: what its name says on GPUs,
    "bf16x3": _HIGH,  # and on TPUs
    "default": Rule(None, passes=1, tf32=True),
    "float16": Rule("highest", passes=6, tf32=False, halves=True),  # of `compute="float16"`
}


def check(precision: str) -> str:
    """Returns the name of a precision; raises UserError for any other text."""
    if precision not in (AUTO, *RULES):
        raise UserError(f"precision {precision!r}: expected one of {', '.join((AUTO, *RULES))}")
    return precision


def chosen(precision: str, dtype: DTypeLike) -> str:
    """Returns the name of the rule of a model.

    Args:
      precision: A key of `RULES`, or "auto": "highest" in float32, and otherwise "default".
      dtype: Dtype of the model's activations. What is left in float32 where they are bfloat16,
        such as gradients of logits, meets bfloat16 arrays, whose rounding is the larger one.
    """
    if check(precision) != AUTO:
        return precision
    return "highest" if np.dtype(dtype) == np.float32 else "default"
