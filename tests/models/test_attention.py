"""Plain attention against sums written out in float64, and the choice of an implementation."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune.models import fused, gpu_kernels
from jaxtune.models.attention import SHORT, attend, choose
from jaxtune.models.decoder import Decoder, DecoderConfig, LayerKind
from jaxtune.models.device import MEMBERS
from jaxtune.models.layout import arrange
from jaxtune.models.rope import default
from tests.marks import slow_after
from tests.models.attention_cases import (
    SCALE,
    SUMS,
    both,
    one_kind,
    packed,
    padded,
    splash,
    tensors,
)


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
    monkeypatch.setattr(gpu_kernels, "capability", lambda q: 9.0)
    assert pick() == expected
    assert pick(window=40, segments=0, valid=True) == expected
    assert pick(causal=False) == expected
    assert pick("plain") == "plain"


@pytest.mark.parametrize("backend, expected", [("tpu", "splash"), ("gpu", "blockwise")])
def test_members_of_a_population_have_a_form_that_vectorises(monkeypatch, backend, expected):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(gpu_kernels, "capability", lambda q: 9.0)
    found = []
    jax.vmap(lambda _: found.append(pick(length=SHORT)), axis_name=MEMBERS)(jnp.zeros(3))
    assert found == [expected] and pick(length=SHORT) != "blockwise"


@pytest.mark.parametrize(
    "expected, call",
    [
        ("cudnn", dict(length=512)),  # a mask twice as large as two heads' queries
        ("cudnn", dict(length=514, segments=None)),  # causal alone is no mask
        ("blockwise", dict(length=514)),
    ],
)
def test_auto_leaves_a_kernel_whose_mask_would_be_large(monkeypatch, expected, call):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(gpu_kernels, "capability", lambda q: 9.0)
    call = dict(segments=0) | call
    found = pick(**{name: value for name, value in call.items() if value is not None})
    assert found == expected and pick("cudnn", **dict(call, segments=0)) == "cudnn"


REFUSALS = [
    ("splash", "prefix, and a window", dict(causal=False, window=40)),
    ("splash", "fewer than one block", dict(length=127)),
    ("cudnn", "fewer than one block", dict(length=127)),
    ("splash", "not float16", dict(dtype="float16")),
    ("splash", "windows count tokens", dict(positions=5, window=40)),
    ("cudnn", "not float32", dict(dtype="float32")),
    ("cudnn", "does not support a softcap", dict(softcap=50.0)),
    ("cudnn", "multiple of 8", dict(size=100)),
    ("cudnn", "even length, not 129", dict(length=129, valid=True)),
    ("cudnn", "even length, not 129", dict(length=129, causal=False)),
    ("cudnn", "even length, not 129", dict(length=129, positions=5, window=40)),
]


@pytest.mark.parametrize("name, reason, call", REFUSALS)
def test_a_kernel_says_why_it_cannot(monkeypatch, name, reason, call):
    with pytest.raises(ValueError, match=f"{name!r} does not support this call: .*{reason}"):
        pick(name, **call)
    monkeypatch.setattr(fused, "native", lambda *_: name)
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
    monkeypatch.setattr(fused, "native", lambda *_: "cudnn")
    monkeypatch.setattr(gpu_kernels, "capability", lambda q: capability)
    monkeypatch.setattr(gpu_kernels, "at_hand", lambda: capability)
    assert (pick(size=size) == "cudnn") == fits


def test_layouts_of_their_own_are_refused():
    q = jnp.zeros((2, 128, 2, 128))
    with pytest.raises(ValueError, match="different layouts"):
        choose("splash", q, arrange((2, 128)), arrange((2, 128)), (None,), None)


def test_several_devices_without_a_mesh_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    with pytest.raises(ValueError, match="with several devices it needs a mesh"):
        pick("splash")


def test_explicit_axes_are_refused():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh), pytest.raises(ValueError, match="explicit axes"):
        pick("splash")


def test_an_unknown_name_is_refused():
    with pytest.raises(
        ValueError,
        match="attention 'flash': expected one of auto, plain, blockwise, splash, cudnn, tokamax",
    ):
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
    kernel = replace(fused.KERNELS["splash"], attend=splash)
    monkeypatch.setitem(fused.KERNELS, "splash", kernel)
    config = small(attention_softcap=5.0)
    tokens = jnp.asarray(np.random.default_rng(3).integers(0, 31, (2, 128)))
    described, valid = both(128), both(128)["valid"]
    variables = jax.jit(Decoder(config).init)(jax.random.key(0), tokens)

    def loss(variables, name):
        model = Decoder(config, attention=name)
        logits = model.apply(variables, tokens, **described)
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
