"""Leaves laid over devices that are not there."""

import re

import jax
import pytest

import jaxtune
from jaxtune import quant
from jaxtune.cli.inspect.report import inspect


def test_a_mesh_under_weights_of_4_bits(saved):
    _, _, packed = saved
    _, variables = jaxtune.load(packed)
    leaves = quant.by_path(variables["params"])
    whole, split = (inspect(packed, {"fsdp": n}) for n in (1, 4))
    for leaf in whole.leaves:
        arrays = jax.tree.leaves(leaves[leaf.path])
        held = sum(each.size * jax.dtypes.itemsize_bits(each.dtype) for each in arrays) // 8
        assert leaf.placement.bytes_per_device == held
    placed = {leaf.path: leaf.placement for leaf in split.leaves}
    down, up = placed["layers/mlp/down/w"], placed["layers/mlp/up/w"]
    # The mean and the one peak of each layer's scales are on every device.
    double = leaves["layers/mlp/down/w"].kind == "nf4-double"
    scale, beside = (1, 2 * (4 + 4)) if double else (4, 0)
    codes, scales = 2 * 192 * 64 // 2, 2 * 3 * 64 * scale
    assert down.axes == (None, None, "fsdp")
    assert down.bytes_per_device == (codes + scales) // 4 + beside
    assert up.axes == (None, "fsdp", None)  # within their blocks, of which outputs have one each
    assert up.bytes_per_device == codes // 4 + scales + beside


def test_a_mesh_of_devices_that_are_not_there(made):
    report = inspect(made("llama-linear")[0], {"fsdp": 8, "tensor": 2})
    placed = {leaf.path: leaf.placement for leaf in report.leaves}
    assert placed["layers/attn/q/w"].axes == (None, "fsdp", "tensor")
    assert placed["layers/attn/q/w"].bytes_per_device == 3 * (48 // 8) * (48 // 2) * 4
    assert placed["layers/mlp/down/w"].axes == (None, "tensor", "fsdp")
    assert placed["layers/attn_norm/scale"].axes == (None, None)
    assert placed["layers/attn_norm/scale"].undivided == ()
    # 211 rows do not split in two, the width does in eight.
    assert placed["embed/w"].axes == (None, "fsdp")
    assert placed["embed/w"].undivided == ("tensor=2 does not divide 211",)
    assert placed["embed/w"].bytes_per_device == 211 * 6 * 4
    assert report.notes[:2] == (
        "tensor=2 does not divide 211, so it does not shard embed/w",
        "tensor=2, fsdp=8 does not divide 211, so it does not shard head/w",
    )
    total = sum(placement.bytes_per_device for placement in placed.values())
    assert report.totals["bytes_per_device"] == total
    assert report.mesh == {"fsdp": 8, "tensor": 2}


def test_what_a_device_holds_depends_on_the_dtype(made):
    directory, _ = made("llama-linear")
    stored, rounded = (inspect(directory, {"fsdp": 4}, dtype) for dtype in ("auto", "bfloat16"))
    assert stored.totals["bytes_per_device"] == 2 * rounded.totals["bytes_per_device"]
    assert stored.totals["bytes"] == rounded.totals["bytes"]
    # Of this mesh's axes, one is left out, for one leaf.
    note = "fsdp=4 does not divide 211, so it does not shard head/w"
    assert stored.notes == (note, *inspect(directory).notes)


@pytest.mark.parametrize(
    ("axes", "dtype", "problem"),
    [
        ({"fdsp": 8}, "auto", "unknown mesh axis 'fdsp': expected one of data, fsdp, tensor"),
        ({"fsdp": 0}, "auto", "fsdp=0: expected a size of 1 or more"),
        ({"fsdp": 8}, "int8", "dtype 'int8': expected one of float32, bfloat16, float16 or auto"),
    ],
)
def test_meshes_and_dtypes_that_make_no_sense(made, axes, dtype, problem):
    with pytest.raises(ValueError, match=re.escape(problem)):
        inspect(made("llama-linear")[0], axes, dtype)
