"""The dtype of activations, by what a device computes in."""

from types import SimpleNamespace

import numpy as np
import pytest

from jaxtune.checkpoint.dtypes import activation_dtype
from jaxtune.display.errors import UserError

BFLOAT16, FLOAT32 = np.dtype("bfloat16"), np.dtype("float32")
CPU, TPU = SimpleNamespace(platform="cpu"), SimpleNamespace(platform="tpu")


def gpu(capability: str) -> SimpleNamespace:
    return SimpleNamespace(platform="gpu", compute_capability=capability)


@pytest.mark.parametrize(
    "device, expected",
    [
        (CPU, FLOAT32),
        (TPU, BFLOAT16),
        (gpu("7.5"), FLOAT32),  # a T4, which has no bfloat16
        (gpu("8.0"), BFLOAT16),
        (gpu("8.9"), BFLOAT16),
        (gpu("9.0"), BFLOAT16),
        (gpu("10.0"), BFLOAT16),  # not before 8.0, as its text is
    ],
)
def test_auto_is_what_the_device_computes_in(device, expected):
    assert activation_dtype("auto", [BFLOAT16, np.dtype("float16")], device) == expected
    assert activation_dtype("auto", [], device) == expected  # everything is quantised
    assert activation_dtype("auto", [BFLOAT16, FLOAT32], device) == FLOAT32


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_a_dtype_that_is_set_holds_on_every_device(compute):
    for device in (CPU, TPU, gpu("7.5")):
        assert activation_dtype(compute, [FLOAT32], device) == np.dtype(compute)


def test_float16_is_refused():
    with pytest.raises(UserError, match="compute 'float16': expected one of auto, float32"):
        activation_dtype("float16", [], TPU)
