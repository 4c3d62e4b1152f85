"""The fused kernels against plain attention."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune.models import fused
from jaxtune.models.attention import attend
from jaxtune.models.layout import arrange
from tests import devices
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
    splash,
    tensors,
)

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "described, windows, kind, softcap",
    [
        ({}, (70, None), 0, 2.0),
        (dict(valid=padded(300)), (70, None), 1, None),
    ],
)
def test_splash_is_the_plain_form(monkeypatch, described, windows, kind, softcap):
    monkeypatch.setattr(fused, "BLOCK", 128)  # three blocks, the last of them filled up
    arrays = tensors(length=300, heads=2, kv_heads=1, size=128)
    compare(splash, described, arrays, SUMS, windows, kind, softcap)


@pytest.mark.slow
def test_splash_in_bfloat16():
    # Every logit comes of q rounded once more than in the plain form: 2**-9 of logits up to 10.
    arrays = tensors(length=130, heads=4, kv_heads=2, size=80, dtype=jnp.bfloat16)
    compare(splash, both(130), arrays, 4e-2, (40,))


@pytest.mark.parametrize("length", [128, 513, 1100, 2048, 5000])
def test_blocks_hold_a_sequence_with_little_to_spare(length):
    block, whole = fused._blocks(length)
    assert block % fused.LANES == 0 and block <= fused.BLOCK and whole % block == 0
    assert 0 <= whole - length < fused.LANES * whole // block


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


@pytest.mark.slow
def test_splash_under_vmap():
    """Two sets of queries share keys, as two adapters on q share what lies under them."""
    q, k, v = tensors(length=128, heads=2, kv_heads=1, size=16)
    layout = arrange((2, 128), segments=packed(128))
    run = partial(splash, layout=layout, kind=jnp.int32(1), windows=(9, None), scale=SCALE)
    both_at_once = jax.jit(jax.vmap(lambda q: run(q, k, v)))(jnp.stack([q, 2 * q]))
    plain = partial(attend, kind=jnp.int32(1), windows=(9, None), scale=SCALE)
    for factor, got in zip((1, 2), both_at_once, strict=True):
        np.testing.assert_allclose(got, plain(factor * q, k, v, layout, layout), atol=SUMS)


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
    compare(fused.cudnn, described, arrays, 4e-2, (70, None), 0)


@pytest.mark.parametrize("described, bias", [({}, ""), (dict(segments=packed(256)), "ScaleBias")])
def test_cudnn_is_called_with_the_window_or_the_mask(monkeypatch, described, bias):
    """Lowered for CUDA, not compiled: what the custom calls are told, forward and backward."""
    from jax._src.cudnn import fused_attention_stablehlo as library

    monkeypatch.setattr(library, "check_cudnn_version", lambda: 91000)
    layout = arrange((2, 256), **described)
    run = partial(fused.cudnn, layout=layout, kind=jnp.int32(0), windows=(70, None), scale=SCALE)
    arrays = tensors(length=256, dtype=jnp.bfloat16)
    step = jax.jit(jax.grad(lambda *x: run(*x).astype(jnp.float32).sum(), (0, 1, 2)))
    text = step.trace(*arrays).lower(lowering_platforms=("cuda",)).as_text().replace("\\22", '"')
    assert f"__cudnn$fmha{bias}Softmax(" in text
    assert f"__cudnn$fmha{bias}SoftmaxBackward(" in text
    assert '"mask_type": "CAUSAL"' in text and '"mask_type": "NO_MASK"' not in text
    assert ('"sliding_window_length": 70' in text) == (not bias)
    assert '"sliding_window_length": 0' in text


@pytest.mark.parametrize("said, read", [("8.6", 8.6), ("12.0", 12.0), ("gfx942", 0), (None, 0)])
def test_capability_of_a_gpu(monkeypatch, said, read):
    class Device:
        compute_capability = said

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [Device])
    q = jnp.zeros((1, 1, 1, 8))
    assert fused.capability(q) == read
    monkeypatch.setattr(fused, "mesh_of", lambda q: mesh("NVIDIA X1"))
    monkeypatch.setitem(fused.CAPABILITY, "NVIDIA X1", "9.0")
    assert fused.capability(q) == 9.0  # of the device that the mesh is made of
    monkeypatch.setattr(fused, "mesh_of", lambda q: mesh("another"))
    assert fused.capability(q) == read


def mesh(kind):
    return SimpleNamespace(abstract_device=SimpleNamespace(device_kind=kind))


SPREAD = """
import jax, numpy as np
from functools import partial
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jaxtune.models.layout import arrange
from tests.models.attention_cases import SCALE, SUMS, both, compare, cudnn, splash, tensors

mesh = Mesh(np.array(jax.devices()).reshape(2, 2, 2), ("data", "fsdp", "tensor"))
described = {name: np.tile(value, (2, 1)) for name, value in both(128).items()}
arrays = tensors(batch=4, length=128, heads=4, kv_heads=2, size=16)
placed = jax.device_put(arrays, NamedSharding(mesh, P(("data", "fsdp"), None, "tensor")))
compare(splash, described, placed, SUMS, (40, None), 0)
compare(cudnn, described, placed, SUMS, (40, None), 0)
run = partial(splash, layout=arrange((4, 128)), kind=0, windows=(None,), scale=SCALE)
assert "all-gather" not in jax.jit(run).lower(*placed).compile().as_text()

# Two rows for four devices, and one key head for two: whatever does not divide stays whole.
arrays = tensors(length=128, heads=2, kv_heads=1, size=16)
placed = jax.device_put(arrays, NamedSharding(mesh, P()))
compare(splash, {}, placed, SUMS)
run = partial(splash, layout=arrange((2, 128)), kind=0, windows=(None,), scale=SCALE)
assert "shard_map" in str(jax.make_jaxpr(run)(*placed))
with jax.set_mesh(mesh):
    assert "shard_map" in str(jax.make_jaxpr(run)(*arrays))
print("spread")
"""


@pytest.mark.slow
def test_each_device_attends_to_its_share():
    environment = devices.environment(8) | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": "."}
    command = [sys.executable, "-c", SPREAD]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "spread\n", done.stderr[-3000:]
