"""cuDNN and tokamax: what they are told, and what they compute, against plain attention."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune.models import products
from jaxtune.models.layout import arrange
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
    compare(products.cudnn, described, arrays, 4e-2, (70, None), 0)


@pytest.mark.parametrize("described, bias", [({}, ""), (dict(segments=packed(256)), "ScaleBias")])
def test_cudnn_is_called_with_the_window_or_the_mask(monkeypatch, described, bias):
    """Lowered for CUDA, not compiled: what the custom calls are told, forward and backward."""
    from jax._src.cudnn import fused_attention_stablehlo as library

    monkeypatch.setattr(library, "check_cudnn_version", lambda: 91000)
    layout = arrange((2, 256), **described)
    run = partial(products.cudnn, layout=layout, kind=jnp.int32(0), windows=(70, None), scale=SCALE)
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
    run = partial(kernel, kind=jnp.int32(0), windows=(20,), scale=SCALE)
    out, grads = gradients(run, layout, arrays, ~valid[:, :, None, None])
    assert np.isfinite(out).all()
    for each in grads:
        assert np.isfinite(each).all()
        assert np.abs(each[valid]).max() == 0
    assert np.abs(grads[2][~valid]).max() > 0
