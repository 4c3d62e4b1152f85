"""The dtype of activations and the precision of products, by what a device computes in."""

from types import SimpleNamespace

import numpy as np
import pytest

from jaxtune.checkpoint.activations import computed
from jaxtune.display.errors import UserError

BFLOAT16, FLOAT32 = np.dtype("bfloat16"), np.dtype("float32")
CPU, TPU = SimpleNamespace(platform="cpu"), SimpleNamespace(platform="tpu")


def gpu(capability: str) -> SimpleNamespace:
    return SimpleNamespace(platform="gpu", compute_capability=capability)


@pytest.mark.parametrize(
    "device, dtype, precision",
    [
        (CPU, FLOAT32, "auto"),
        (TPU, BFLOAT16, "auto"),
        (gpu("6.0"), FLOAT32, "auto"),  # a P100, without matrix units
        (gpu("7.0"), FLOAT32, "float16"),  # a V100
        (gpu("7.5"), FLOAT32, "float16"),  # a T4, which has no bfloat16 either
        (gpu("8.0"), BFLOAT16, "auto"),
        (gpu("8.9"), BFLOAT16, "auto"),
        (gpu("9.0"), BFLOAT16, "auto"),
        (gpu("10.0"), BFLOAT16, "auto"),  # not before 8.0, as its text is
    ],
)
def test_auto_is_what_the_device_computes_in(device, dtype, precision):
    found = (dtype, precision)
    assert computed("auto", "auto", [BFLOAT16, np.dtype("float16")], device) == found
    assert computed("auto", "auto", [], device) == found  # everything is quantised
    assert computed("auto", "auto", [BFLOAT16, FLOAT32], device) == (FLOAT32, "auto")


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_a_dtype_that_is_set_holds_on_every_device(compute):
    for device in (CPU, TPU, gpu("7.5")):
        assert computed(compute, "auto", [FLOAT32], device) == (np.dtype(compute), "auto")


def test_float16_is_of_products_on_every_device():
    for device in (CPU, TPU, gpu("7.5")):
        assert computed("float16", "auto", [FLOAT32], device) == (FLOAT32, "float16")


def test_a_precision_that_is_set_is_of_float32():
    assert computed("auto", "highest", [], gpu("7.5")) == (FLOAT32, "highest")
    with pytest.raises(UserError, match="precision 'tf32' is of products of float32, and compute"):
        computed("float16", "tf32", [], gpu("7.5"))


def test_other_names_are_refused():
    with pytest.raises(UserError, match="compute 'float8': expected one of auto, float32, bfloat"):
        computed("float8", "auto", [], TPU)
