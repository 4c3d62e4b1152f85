"""cuDNN and tokamax: what they are told, and what they compute, against plain attention."""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxtune import sharding
from jaxtune.models import gpu_kernels
from jaxtune.models.attention import attend, choose
from jaxtune.models.layout import arrange
from jaxtune.runs.plan.targets import target
from tests.marks import slow_after
from tests.models.attention_cases import (
    SCALE,
    SUMS,
    both,
    compare,
    cudnn,
    gradients,
    packed,
    padded,
    prefixed,
    splash,
    tensors,
)


@pytest.mark.parametrize(
    "described, kind, kv_heads",
    slow_after(
        1,
        [
            (both(130), 1, 1),
            ({}, 0, 1),
            ({}, 1, 2),
            (dict(segments=packed(130)), 0, 2),
            (dict(valid=padded(130)), 0, 2),
            (dict(causal=prefixed(130), valid=padded(130)), 0, 2),
            (None, 1, 2),
            (dict(positions=np.cumsum(np.full((2, 130), 2), axis=1)), 0, 4),
        ],
    ),
)
def test_what_cudnn_is_told_is_the_plain_form(described, kind, kv_heads):
    arrays = tensors(length=130, kv_heads=kv_heads, size=16)
    compare(cudnn, described, arrays, SUMS, (40, None), kind)


@pytest.mark.slow
def test_what_cudnn_is_told_in_bfloat16():
    # Weights rounded to 2**-9 before they meet values; sums of those up to 4.
    arrays = tensors(length=130, size=16, dtype=jnp.bfloat16)
    compare(cudnn, both(130), arrays, 4e-2, (40,))


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("described", [{}, dict(segments=packed(256)), both(256)])
def test_cudnn_on_a_gpu(described):
    arrays = tensors(length=256, size=128, dtype=jnp.bfloat16)
    compare(gpu_kernels.cudnn, described, arrays, 4e-2, (70, None), 0)


@pytest.mark.parametrize("described, bias", [({}, ""), (dict(segments=packed(256)), "ScaleBias")])
def test_cudnn_is_called_with_the_window_or_the_mask(monkeypatch, described, bias):
    """Lowered for CUDA, not compiled: what the custom calls are told, forward and backward."""
    from jax._src.cudnn import fused_attention_stablehlo as library

    monkeypatch.setattr(library, "check_cudnn_version", lambda: 91000)
    layout = arrange((2, 256), **described)
    run = partial(
        gpu_kernels.cudnn, layout=layout, kind=jnp.int32(0), windows=(70, None), scale=SCALE
    )
    arrays = tensors(length=256, dtype=jnp.bfloat16)
    step = jax.jit(jax.grad(lambda *x: run(*x).astype(jnp.float32).sum(), (0, 1, 2)))
    text = step.trace(*arrays).lower(lowering_platforms=("cuda",)).as_text().replace("\\22", '"')
    assert f"__cudnn$fmha{bias}Softmax(" in text
    assert f"__cudnn$fmha{bias}SoftmaxBackward(" in text
    assert '"mask_type": "CAUSAL"' in text and '"mask_type": "NO_MASK"' not in text
    assert ('"sliding_window_length": 70' in text) == (not bias)
    assert '"sliding_window_length": 0' in text


@pytest.mark.slow
@pytest.mark.parametrize("kernel", slow_after(1, [splash, cudnn]))
def test_padding_leaks_into_no_gradient(kernel):
    arrays = tensors(length=128, heads=2, kv_heads=1, size=16)
    valid = padded(128)
    layout = arrange((2, 128), valid=valid)
    (_, out), grads = gradients(kernel, (20,))(*arrays, layout, 0, ~valid[:, :, None, None])
    assert np.isfinite(out).all()
    for each in grads:
        assert np.isfinite(each).all()
        assert np.abs(each[valid]).max() == 0
    assert np.abs(grads[2][~valid]).max() > 0


# ---- tokamax, where it is installed


@pytest.fixture
def interpreted(monkeypatch):
    """Has tokamax's Triton kernels run in Pallas' interpreter.

    It does not know `program_id` in branches and loops, so that a kernel gets its indices at once.
    """
    pytest.importorskip("tokamax")
    from jax.experimental import pallas

    call, index, held = pallas.pallas_call, pallas.program_id, []

    def pallas_call(kernel, *rest, grid_spec, compiler_params, **more):
        def with_indices(*refs):
            held.append([index(axis) for axis in range(len(grid_spec.grid))])
            try:
                return kernel(*refs)
            finally:
                held.pop()

        return call(with_indices, *rest, grid_spec=grid_spec, interpret=True, **more)

    def program_id(axis):
        if held and axis >= len(held[-1]):
            raise ValueError("no such axis")
        return held[-1][axis] if held else index(axis)

    monkeypatch.setattr(pallas, "pallas_call", pallas_call)
    monkeypatch.setattr(pallas, "program_id", program_id)
    yield
    jax.clear_caches()  # of traces that hold the interpreter


@pytest.mark.slow
@pytest.mark.parametrize(
    "described, windows, kind, kv_heads, size",
    [
        ({}, (70, None), 0, 1, 64),
        (both(100), (40, None), 0, 2, 16),
        (dict(causal=prefixed(100), valid=padded(100)), (None,), 0, 1, 16),
        (None, (None,), 0, 4, 72),
    ],
)
def test_tokamax_is_the_plain_form(interpreted, described, windows, kind, kv_heads, size):
    arrays = tensors(length=100, kv_heads=kv_heads, size=size)  # two blocks, one filled up
    compare(gpu_kernels.tokamax, described, arrays, SUMS, windows, kind)


@pytest.mark.slow
def test_tokamax_in_bfloat16(interpreted):
    # Queries are scaled, and weights rounded, in bfloat16, as cuDNN's are.
    arrays = tensors(length=100, size=256, kv_heads=1, dtype=jnp.bfloat16)
    compare(gpu_kernels.tokamax, both(100), arrays, 4e-2, (40,))


@pytest.mark.slow
@pytest.mark.parametrize(
    "chip, width", [("a100-40", 256), ("h100", 256), ("b200", 256), ("l4", 128)]
)
@pytest.mark.parametrize("described", [{}, dict(causal=prefixed(1024)[1:])])
def test_tokamax_compiles_for_gpus_that_are_not_at_hand(monkeypatch, described, chip, width):
    """Forward and backward, with a window; by XLA's compiler, for which no GPU is needed."""
    pytest.importorskip("tokamax")
    pytest.importorskip("jax_cuda12_plugin")
    monkeypatch.setattr(sys, "argv", ["launch.py", "--config", "configs/x.py"])
    mesh = sharding.make_mesh({"data": 1}, target(chip).devices())
    where = NamedSharding(mesh, PartitionSpec())
    arrays = [
        jax.ShapeDtypeStruct((1, 1024, heads, width), jnp.bfloat16, sharding=where)
        for heads in (4, 1, 1)
    ]
    layout = arrange((1, 1024), **described)
    how = dict(kind=jnp.int32(0), windows=(512,), scale=SCALE, implementation="tokamax")

    def loss(*arrays):
        return attend(*arrays, layout, layout, **how).astype(jnp.float32).sum()

    text = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arrays).compile().as_text()
    assert text.count("__gpu$xla.gpu.triton") == 2


@pytest.mark.parametrize(
    "capability, call, reason",
    [
        (7.5, {}, "compute capability 8.0 to 11, not 7.5"),
        (12.0, {}, "compute capability 8.0 to 11, not 12.0"),
        (8.9, dict(size=256), "head size 256 is larger than 128"),
        (8.0, dict(dtype="float32"), "not float32"),
        (9.0, dict(softcap=50.0), "does not support a softcap"),
        (8.0, dict(length=100), "fewer than one block"),
        (8.0, dict(size=256), "tokamax is not installed: pip install tokamax"),
    ],
)
def test_tokamax_says_why_it_cannot(monkeypatch, capability, call, reason):
    monkeypatch.setattr(gpu_kernels, "capability", lambda q: capability)
    monkeypatch.setattr(gpu_kernels.importlib.util, "find_spec", lambda name: None)
    call = dict(length=128, size=64, dtype="bfloat16", softcap=None) | call
    q = jnp.zeros((1, call["length"], 2, call["size"]), call["dtype"])
    layout = arrange((1, call["length"]))
    with pytest.raises(ValueError, match=f"'tokamax' does not support this call: .*{reason}"):
        choose("tokamax", q, layout, layout, (None,), call["softcap"])
