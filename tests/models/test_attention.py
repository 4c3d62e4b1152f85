"""Plain attention against sums written out in float64, and the fused kernels against the plain."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune.models import fused
from jaxtune.models.attention import attend, choose
from jaxtune.models.decoder import Decoder, DecoderConfig, LayerKind
from jaxtune.models.layout import arrange
from jaxtune.models.rope import default
from tests import devices
from tests.marks import slow_after

ROOT = Path(__file__).parents[2]
SCALE = 0.3  # no power of two, so that scaling rounds


def tensors(batch=2, length=13, heads=4, kv_heads=2, size=8, dtype=jnp.float32):
    """Random q, k and v."""
    shapes = [(batch, length, n, size) for n in (heads, kv_heads, kv_heads)]
    generator = np.random.default_rng(0)
    return [jnp.asarray(generator.standard_normal(shape), dtype) for shape in shapes]


def packed(length: int) -> np.ndarray:
    """Three sequences in the first row, two in the second."""
    index = np.arange(length)
    first = (index >= length // 4).astype(int) + (index >= length // 2 + 3)
    return np.stack([first, (index >= length // 3).astype(int)])


def padded(length: int) -> np.ndarray:
    """Padding on the left of the first row and on the right of the second."""
    index = np.arange(length)
    return np.stack([index >= length // 3, index < length - length // 4])


def both(length: int) -> dict:
    """Packed sequences with padding after them."""
    valid = np.ones((2, length), bool)
    valid[0, length - length // 5 :] = False
    return dict(segments=packed(length), valid=valid)


def written_out(q, k, v, *, window=None, softcap=None, seen_by):
    """The sums of attention, one query at a time, in float64. `seen_by(b, t, s, window)`."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    for b, t, n in np.ndindex(q.shape[:3]):
        m = n // (q.shape[2] // k.shape[2])
        keys = [s for s in range(k.shape[1]) if seen_by(b, t, s, window or k.shape[1] * 100)]
        logits = k[b, keys, m] @ q[b, t, n] * SCALE
        if softcap:
            logits = softcap * np.tanh(logits / softcap)
        weights = np.exp(logits - logits.max(initial=0.0))
        out[b, t, n] = weights @ v[b, keys, m] / max(weights.sum(), 1e-300)
    return out


def rule(length, positions=None, segments=None, valid=None, causal=None):
    """Who sees whom, said in words of one pair at a time."""
    valid = np.ones((2, length), bool) if valid is None else valid
    segments = np.zeros((2, length), int) if segments is None else segments
    causal = np.ones((2, length), bool) if causal is None else causal

    def start(b, t):  # of the run of tokens, alike in segment and validity, that t is in
        kind = list(zip(segments[b], valid[b], strict=True))
        while t and kind[t - 1] == kind[t]:
            t -= 1
        return t

    def position(b, t):
        return t - start(b, t) if positions is None else positions[b, t]

    def seen_by(b, t, s, window):
        earlier = s <= t or not causal[b, t + 1 : s + 1].any()
        together = segments[b, t] == segments[b, s] and valid[b, t] and valid[b, s]
        return earlier and together and position(b, t) - position(b, s) < window

    return seen_by


GIVEN = np.cumsum(np.random.default_rng(1).integers(1, 4, (2, 13)), axis=1)
PREFIX = np.arange(13) >= np.array([[5], [0]])  # five tokens that see each other; none
LAYOUTS = {
    "whole": {},
    "packed": dict(segments=packed(13)),
    "padded": dict(valid=padded(13)),
    "packed and padded": both(13),
    "positions": dict(positions=GIVEN),
    "prefix": dict(causal=PREFIX),
    "padded prefix": dict(causal=PREFIX, valid=padded(13)),
}


@pytest.mark.parametrize("kv_heads", slow_after(1, [2, 1, 4]))
@pytest.mark.parametrize("window, softcap", [(None, None), (4, 2.0)])
@pytest.mark.parametrize("name", LAYOUTS)
def test_plain_is_the_sum_written_out(name, window, softcap, kv_heads):
    q, k, v = tensors(kv_heads=kv_heads)
    layout = arrange((2, 13), **LAYOUTS[name])
    got = attend(q, k, v, layout, layout, **one_kind(window), softcap=softcap)
    seen_by = rule(13, **LAYOUTS[name])
    expected = written_out(q, k, v, window=window, softcap=softcap, seen_by=seen_by)
    valid = LAYOUTS[name].get("valid", np.ones((2, 13), bool))
    # Sums of 13 terms near 1 in float32.
    np.testing.assert_allclose(np.asarray(got)[valid], expected[valid], atol=3e-6)


def test_plain_takes_fewer_queries_than_keys():
    q, k, v = tensors()
    layout = arrange((2, 13))
    last = jax.tree.map(lambda x: x[:, 10:], layout)
    whole = attend(q, k, v, layout, layout, **one_kind(4))
    tail = attend(q[:, 10:], k, v, last, layout, **one_kind(4))
    np.testing.assert_allclose(tail, whole[:, 10:], atol=1e-6)  # the same sums, other shapes


def one_kind(window):
    return dict(kind=jnp.int32(0), windows=(window,), scale=SCALE)


# ---- the kernels against the plain form, on the CPU


def gradients(run, layout, arrays, weight):
    """Output at valid tokens, and gradients of its sum weighted by `weight`."""

    def loss(q, k, v):
        out = run(q, k, v, layout).astype(jnp.float32)
        return (out * weight).sum(), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*arrays)
    return out, grads


def compare(kernel, described, arrays, tolerance, windows=(None,), kind=0, softcap=None):
    """A kernel gives the plain form's output and gradients wherever a token is valid."""
    batch, length = arrays[0].shape[:2]
    layout = arrange((batch, length), **described)
    valid = np.asarray(described.get("valid", np.ones((batch, length), bool)))
    shape = arrays[0].shape
    weight = np.random.default_rng(2).standard_normal(shape) * valid[:, :, None, None]
    how = dict(kind=jnp.int32(kind), windows=windows, scale=SCALE)

    def plain(q, k, v, layout):
        return attend(q, k, v, layout, layout, **how, softcap=softcap, implementation="plain")

    expected, expected_grads = gradients(plain, layout, arrays, weight)
    capped = {} if softcap is None else dict(softcap=softcap)
    got, got_grads = gradients(partial(kernel, **how, **capped), layout, arrays, weight)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got[valid], expected[valid], atol=tolerance)
    for each, other in zip(got_grads, expected_grads, strict=True):
        wide = [np.asarray(x, np.float32) for x in (each, other)]
        np.testing.assert_allclose(*wide, atol=tolerance * np.abs(wide[1]).max())


splash = partial(fused.splash, interpret=True)
cudnn = partial(fused.cudnn, implementation="xla")

# Float32 on both sides; only the order of some 300 additions differs.
SUMS = 2e-5


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


# ---- the choice


def pick(name="auto", length=128, size=128, dtype="bfloat16", window=None, softcap=None, **tokens):
    described = {key: np.broadcast_to(value, (2, length)) for key, value in tokens.items()}
    layout = arrange((2, length), **described)
    q = jnp.zeros((2, length, 2, size), dtype)
    return choose(name, q, layout, layout, (window, None), softcap)


@pytest.mark.parametrize(
    "backend, expected", [("cpu", "plain"), ("tpu", "splash"), ("gpu", "cudnn")]
)
def test_auto_is_what_the_backend_has(monkeypatch, backend, expected):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(fused, "_capability", lambda: 9.0)
    assert pick() == expected
    assert pick(window=40, segments=0, valid=True) == expected
    assert pick(causal=False) == "plain"
    assert pick("plain") == "plain"


REFUSALS = [
    ("splash", "prefix", dict(causal=False)),
    ("cudnn", "prefix", dict(causal=False)),
    ("splash", "fewer than one block", dict(length=127)),
    ("cudnn", "fewer than one block", dict(length=127)),
    ("splash", "not float16", dict(dtype="float16")),
    ("splash", "windows count tokens", dict(positions=5, window=40)),
    ("cudnn", "not float32", dict(dtype="float32")),
    ("cudnn", "no softcap", dict(softcap=50.0)),
    ("cudnn", "multiple of 8", dict(size=100)),
    ("cudnn", "even length, not 129", dict(length=129, valid=True)),
    ("cudnn", "even length, not 129", dict(length=129, positions=5, window=40)),
]


@pytest.mark.parametrize("name, reason, call", REFUSALS)
def test_a_kernel_says_why_it_cannot(monkeypatch, name, reason, call):
    with pytest.raises(ValueError, match=f"{name!r} cannot serve this call: .*{reason}"):
        pick(name, **call)
    monkeypatch.setattr(fused, "native", lambda q: name)
    assert pick("auto", **call) == "plain"


@pytest.mark.parametrize(
    "name, call",
    [
        ("splash", dict(dtype="float32", size=100, length=129, softcap=50.0, valid=True)),
        ("splash", dict(positions=5)),
        ("cudnn", dict(length=129, window=40)),
        ("cudnn", dict(dtype="float16", positions=5, window=40)),
    ],
)
def test_a_kernel_takes_what_it_can(name, call):
    assert pick(name, **call) == name


@pytest.mark.parametrize(
    "capability, size, fits",
    [(7.5, 64, False), (8.0, 128, True), (8.9, 256, False), (9.0, 256, True), (10.0, 256, False)],
)
def test_cudnn_asks_what_the_gpu_can_do(monkeypatch, capability, size, fits):
    monkeypatch.setattr(fused, "native", lambda q: "cudnn")
    monkeypatch.setattr(fused, "_capability", lambda: capability)
    assert (pick(size=size) == "cudnn") == fits


@pytest.mark.parametrize("said, read", [("8.6", 8.6), ("12.0", 12.0), ("gfx942", 0), (None, 0)])
def test_capability_of_a_gpu(monkeypatch, said, read):
    class Device:
        compute_capability = said

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [Device])
    assert fused._capability() == read


def test_layouts_of_their_own_are_refused():
    q = jnp.zeros((2, 128, 2, 128))
    with pytest.raises(ValueError, match="layouts of their own"):
        choose("splash", q, arrange((2, 128)), arrange((2, 128)), (None,), None)


def test_several_devices_without_a_mesh_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    with pytest.raises(ValueError, match="must know their mesh"):
        pick("splash")


def test_explicit_axes_are_refused():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh), pytest.raises(ValueError, match="explicit axes"):
        pick("splash")


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"'flash'.*'auto', 'plain', 'splash', 'cudnn'"):
        pick("flash")


# ---- through the model


def small(**changes) -> DecoderConfig:
    rope = default(1e4, 16)
    layers = (LayerKind(rope, 40), LayerKind(rope))
    sizes = dict(vocabulary=31, width=24, hidden=32, heads=4, kv_heads=2, head_size=16)
    rest = dict(layers=layers, context=512, query_scale=SCALE, tied=True)
    return DecoderConfig(**sizes, **rest, **changes)


@pytest.mark.slow
def test_the_model_carries_the_choice(monkeypatch):
    monkeypatch.setattr(fused, "splash", splash)
    config = small(attention_softcap=5.0)
    tokens = jnp.asarray(np.random.default_rng(3).integers(0, 31, (2, 128)))
    described, valid = both(128), both(128)["valid"]
    variables = jax.jit(Decoder(config).init)(jax.random.key(0), tokens)

    def loss(variables, name):
        logits = Decoder(config, attention=name).apply(variables, tokens, **described)
        return (jax.nn.log_softmax(logits)[..., 0] * valid).mean()

    (expected, wanted), (got, given) = (
        jax.jit(jax.value_and_grad(partial(loss, name=name)))(variables)
        for name in ("plain", "splash")
    )
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    for each, other in zip(jax.tree.leaves(given), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(each, other, atol=SUMS * np.abs(other).max())
    assert "pallas" in str(jax.make_jaxpr(partial(loss, name="splash"))(variables))


def test_the_model_reports_what_stands_in_the_way():
    tokens = jnp.zeros((1, 20), jnp.int32)
    model = Decoder(small(), attention="splash")
    with pytest.raises(ValueError, match="20 tokens"):
        jax.eval_shape(model.init, jax.random.key(0), tokens)


SPREAD = """
import jax, numpy as np
from functools import partial
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from tests.models.test_attention import *

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
