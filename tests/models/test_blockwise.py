"""Attention in blocks beside the plain form."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtune
from jaxtune.models import attention, blockwise
from jaxtune.models.attention import LONG, SHORT, attend, attend_cached, choose, plain
from jaxtune.models.cache import CachedKV
from jaxtune.models.layout import PADDING, Layout, arrange, mask, reach
from jaxtune.quant.precision import Setting
from tests.devices import environment
from tests.marks import slow_after
from tests.models.attention_cases import SCALE, both, compare, packed, padded, tensors

ROOT = Path(__file__).parents[2]
LENGTH, BLOCK = 37, 8  # five blocks, of which the last is not full
SUMS = 4e-6  # float32 on both sides; only the order of some tens of additions differs
GIVEN = np.cumsum(np.random.default_rng(1).integers(1, 4, (2, LENGTH)), axis=1)
PREFIX = np.arange(LENGTH) >= np.array([[13], [0]])  # tokens that see each other; none
LAYOUTS = {
    "whole": {},
    "packed": dict(segments=packed(LENGTH)),
    "padded": dict(valid=padded(LENGTH)),
    "packed and padded": both(LENGTH),
    "positions": dict(positions=GIVEN),
    "prefix": dict(causal=PREFIX),
    "padded prefix": dict(causal=PREFIX, valid=padded(LENGTH)),
}


def in_blocks(q, k, v, layout, *, kind, windows, block=BLOCK, **how):
    return blockwise.blockwise(q, k, v, (layout, layout), reach(windows, kind), block=block, **how)


@pytest.mark.parametrize("kv_heads", slow_after(1, [2, 1, 4]))
@pytest.mark.parametrize("window, softcap", [(None, None), (11, 2.0)])
@pytest.mark.parametrize("name", LAYOUTS)
def test_output_and_gradients_are_those_of_the_plain_form(name, window, softcap, kv_heads):
    arrays = tensors(length=LENGTH, kv_heads=kv_heads)
    compare(in_blocks, LAYOUTS[name], arrays, SUMS, (window, None), 0, softcap)


@pytest.mark.parametrize("block", [1, 5, 37, 64])
def test_blocks_of_any_size(block):
    arrays = tensors(length=LENGTH)
    compare(partial(in_blocks, block=block), both(LENGTH), arrays, SUMS, (9,))


def test_without_layouts_every_query_sees_every_key():
    q, k, v = tensors(length=LENGTH)
    ours = jax.jit(partial(blockwise.blockwise, scale=SCALE, block=BLOCK))
    theirs = jax.jit(partial(plain, scale=SCALE))
    for queries in (q, q[:, :5]):
        found = ours(queries, k, v, None, jnp.int32(1))
        np.testing.assert_allclose(found, theirs(queries, k, v, None), atol=SUMS)


def test_a_query_that_sees_nothing_gets_zeros_and_passes_no_gradient():
    q, k, v = tensors(length=LENGTH)
    valid = padded(LENGTH)
    layout = arrange((2, LENGTH), valid=valid)

    def attended(q, k, v):
        return in_blocks(q, k, v, layout, kind=0, windows=(9,), scale=SCALE)

    out, pull = jax.vjp(attended, q, k, v)
    assert (np.asarray(out)[~valid] == 0).all()
    # The gradient of an output at padding reaches nothing.
    for each in pull(jnp.asarray(~valid[:, :, None, None] * np.ones(q.shape), jnp.float32)):
        assert (np.asarray(each) == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_bfloat16_is_no_further_from_float32_than_the_plain_form(softcap):
    layout = arrange((2, 128), segments=packed(128))
    how = dict(kind=jnp.int32(0), windows=(50,), scale=SCALE, softcap=softcap)
    wide = tensors(length=128, size=32)

    def both_of(attended, arrays):
        def loss(*arrays):
            out = attended(*arrays).astype(jnp.float32)
            return (out * jnp.cos(jnp.arange(out.size).reshape(out.shape))).sum(), out

        (_, out), grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*arrays)
        return [np.asarray(each, np.float32) for each in (out, *grads)]

    forms = {
        "plain": lambda *a: attend(*a, layout, layout, **how, implementation="plain"),
        "blocks": lambda *a: in_blocks(*a, layout, **how, block=32),
    }
    truth = both_of(forms["plain"], wide)
    narrow = [each.astype(jnp.bfloat16) for each in wide]
    errors = {
        name: [np.abs(a - b).mean() for a, b in zip(both_of(form, narrow), truth, strict=True)]
        for name, form in forms.items()
    }
    for ours, theirs in zip(errors["blocks"], errors["plain"], strict=True):
        assert ours <= 1.001 * theirs  # the sums are taken in another order


@jax.jit
def counted(layout, window):
    blocks = blockwise.Blocks(8, 8, 1.0, None, Setting.present())
    cut = blockwise._cut_layouts((layout, layout), blocks)
    *_, count = blockwise._pairs(cut, window, 8, 8)
    return count


def pairs(window=None, **described) -> int:
    """How many pairs of blocks are computed, of 64."""
    return int(counted(arrange((2, 64), **described), reach((window,), jnp.int32(0))))


def test_pairs_that_see_nothing_are_left_out():
    assert pairs() == 36  # half the square with its diagonal
    assert pairs(window=8) == 15  # a block and the one before it
    assert pairs(window=1) == 8
    assert pairs(segments=np.repeat(np.arange(8), 8) * np.ones((2, 1), int)) == 8
    assert pairs(causal=np.zeros((2, 64), bool)) == 64
    prefix = np.broadcast_to(np.arange(64) >= 16, (2, 64))
    assert pairs(causal=prefix) == 37  # the prefix's two blocks see each other
    half = np.broadcast_to(np.arange(64) < 32, (2, 64))
    assert pairs(valid=half) == 10
    assert pairs(positions=np.broadcast_to(100 * np.arange(64), (2, 64)), window=100) == 8


@pytest.mark.slow
def test_under_vmap():
    """Members with adapters of their own share keys, or have all of their own."""
    q, k, v = tensors(length=LENGTH)
    layouts = [arrange((2, LENGTH), **LAYOUTS[name]) for name in ("packed", "padded")]
    layouts[0] = layouts[0].replace(segment=layouts[0].segment + 0)
    run = partial(in_blocks, kind=jnp.int32(0), windows=(9, None), scale=SCALE)
    found = jax.vmap(lambda q: run(q, k, v, layouts[0]))(jnp.stack([q, 2 * q]))
    for factor, got in zip((1, 2), found, strict=True):
        np.testing.assert_allclose(got, run(factor * q, k, v, layouts[0]), atol=SUMS)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *layouts)
    arrays = [jnp.stack([each, 2 * each]) for each in (q, k, v)]

    def slopes(q, k, v, layout):
        return jax.grad(lambda *a: jnp.sin(run(*a, layout)).sum(), (0, 1, 2))(q, k, v)

    together = jax.vmap(slopes)(*arrays, stacked)
    for number, layout in enumerate(layouts):
        alone = slopes(*(each[number] for each in arrays), layout)
        for got, expected in zip(together, alone, strict=True):
            np.testing.assert_allclose(got[number], expected, atol=1e-5)


@pytest.mark.slow
def test_derivatives_in_forward_mode_and_of_the_gradient():
    q, k, v = tensors(length=LENGTH)
    layout = arrange((2, LENGTH), **both(LENGTH))
    how = dict(kind=jnp.int32(0), windows=(9,), scale=SCALE, softcap=3.0)
    valid = both(LENGTH)["valid"][:, :, None, None]

    def loss(q, **more):
        return jnp.sum(jnp.sin(in_blocks(q, k, v, layout, **how, **more)) * valid)

    def expected(q):
        found = attend(q, k, v, layout, layout, **how, implementation="plain")
        return jnp.sum(jnp.sin(found) * valid)

    step = jnp.cos(q)
    ours, theirs = (
        jax.jvp(each, (q,), (step,))[1] for each in (partial(loss, forward=True), expected)
    )
    assert float(ours) == pytest.approx(float(theirs), rel=1e-4)
    hessian = [jax.jvp(jax.grad(each), (q,), (step,))[1] for each in (loss, expected)]
    np.testing.assert_allclose(*hessian, atol=1e-4 * np.abs(hessian[1]).max())
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(loss, (q,), (step,))


@pytest.mark.parametrize("window, softcap", [(None, None), (6, 2.0)])
@pytest.mark.parametrize("block", [4, 7, 64])
def test_a_cache_is_read_in_blocks(window, softcap, block):
    """Rows whose prompts have other lengths, with free slots after them."""
    q, k, v = tensors(length=30)
    slots = np.arange(30)
    filled = np.stack([slots < 21, (slots < 21) & (slots >= 5)])
    order = np.broadcast_to(slots, (2, 30)).astype(np.int32)
    segment = np.where(filled, 0, PADDING).astype(np.int32)
    key = Layout(*map(jnp.asarray, (order, segment, order)), whole=False, counted=False)
    query = jax.tree.map(lambda x: x[:, 20:21], key)
    stored = CachedKV(*(jnp.stack([0 * each, each]).swapaxes(2, 3) for each in (k, v)))
    how = dict(scale=SCALE, softcap=softcap)
    attended = jax.jit(partial(blockwise.attend_cache, **how, block=block))
    reached = reach((window,), jnp.int32(0))
    found = attended(q[:, :1], stored.k, stored.v, jnp.int32(1), (query, key), reached)
    seen = mask(query, key, reached)
    expected = jax.jit(partial(plain, **how))(q[:, :1], k, v, seen)
    np.testing.assert_allclose(found, expected, atol=SUMS)


def test_long_caches_alone_are_read_in_blocks(monkeypatch):
    called = []
    monkeypatch.setattr(blockwise, "attend_cache", lambda q, *_, **__: called.append(1) or q)
    for slots in (LONG - 1, LONG):
        stored = CachedKV(*[jnp.zeros((1, 1, 1, slots, 8))] * 2)
        layout = arrange((1, slots))
        query = jax.tree.map(lambda x: x[:, -1:], layout)
        how = dict(kind=jnp.int32(0), windows=(None,), scale=SCALE)
        attend_cached(jnp.zeros((1, 1, 2, 8)), stored, jnp.int32(0), query, layout, **how)
        assert len(called) == (slots == LONG)


def test_auto_takes_it_from_a_length_on():
    for length, expected in ((SHORT - 1, "plain"), (SHORT, "blockwise")):
        layout = arrange((1, length), causal=np.zeros((1, length), bool))
        q = jnp.zeros((1, length, 2, 8))
        assert choose("auto", q, layout, layout, (None,), None) == expected
    assert blockwise.block_of(jnp.zeros((1, 1, 4, 8)), "cpu") == 256
    sizes = [blockwise._even(tokens, 256) for tokens in (100, 256, 384, 512, 600, 1000)]
    assert sizes == [100, 256, 192, 256, 256, 256]
    assert blockwise._even(37, 8) == 8 and blockwise._even(9, 8) == 5
    assert blockwise.block_of(jnp.zeros((64, 1, 32, 8)), "cpu") == blockwise.SMALLEST
    assert blockwise.block_of(jnp.zeros((1, 1, 4, 8)), "gpu") == blockwise.LARGEST


# One model of each kind of attention call. Families differ in query heads per key head, in windows
# and in soft caps alone: rotation, norms and biases come before attention, in either form.
CALLS = (
    "gemma2-windows",  # 2 query heads per key head, a window in every second layer, soft caps
    "gemma3-seven-layers",  # the same without caps
    "gemma2-mqa-uncapped",  # 4 query heads on one key head, a window in every second layer
    "gemma-mqa",  # the same without a window
    "llama-linear",  # 2 query heads per key head, no window
    "mistral-window",  # the same with a window in every layer
    "phi3-window",  # as many key heads as query heads
)


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_models_compute_what_they_do_in_the_plain_form(name, pair, monkeypatch):
    """Logits and their gradients, for padded rows; windows shorter than a row are in the cases."""
    monkeypatch.setattr(blockwise, "SMALLEST", 8)
    monkeypatch.setattr(blockwise, "LARGEST", 8)
    made = pair(name)
    tokens = jnp.asarray(np.random.default_rng(0).integers(5, 60, (2, 29)))
    valid = jnp.asarray(np.arange(29) < np.array([[29], [23]]))

    def found(attention):
        model = made.model.clone(attention=attention)

        def loss(variables):
            logits = model.apply(variables, tokens, valid=valid) * valid[..., None]
            return jnp.sin(logits).sum(), logits

        (_, logits), slopes = jax.jit(jax.value_and_grad(loss, has_aux=True))(made.variables)
        return logits, slopes

    (logits, slopes), (expected, others) = found("blockwise"), found("plain")
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.std(expected))
    for ours, theirs in zip(jax.tree.leaves(slopes), jax.tree.leaves(others), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max() + 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma2-windows", "gemma3-linear-mqa"])
def test_decoding_from_a_cache_in_blocks_gives_the_same_tokens(name, pair, monkeypatch):
    monkeypatch.setattr(attention, "LONG", 8)
    for size in ("SMALLEST", "LARGEST"):
        monkeypatch.setattr(blockwise, size, 4)
    made = pair(name)
    prompts = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [20, 21, 22]]
    answers = [
        jaxtune.generate(made.model.clone(attention=form), made.variables, prompts, 24, stops=())
        for form in ("blockwise", "plain")
    ]
    assert answers[0] == answers[1] and len(answers[0][0]) == 24


SPREAD = """
import jax, jax.numpy as jnp, numpy as np
from functools import partial
from jax.sharding import NamedSharding, PartitionSpec as P
import jaxtune
from jaxtune.models import attention, blockwise
from jaxtune.models.attention import attend
from jaxtune.models.layout import arrange
from jaxtune.sharding import make_mesh
from tests.models.attention_cases import SCALE, both, tensors

blockwise.SMALLEST = blockwise.LARGEST = 8
mesh = make_mesh({"fsdp": 2, "tensor": 2})
arrays = tensors(length=37)
described = {name: jnp.asarray(each) for name, each in both(37).items()}

def slopes(name, described, arrays):
    layout = arrange((2, 37), **described)
    how = dict(kind=jnp.int32(0), windows=(9, None), scale=SCALE, implementation=name)
    def loss(*arrays):
        found = jnp.sin(attend(*arrays, layout, layout, **how))
        return jnp.where(described["valid"][..., None, None], found, 0).sum()
    return jax.grad(loss, (0, 1, 2))(*arrays)

expected = jax.jit(partial(slopes, "plain"))(described, arrays)
there = [jax.device_put(x, NamedSharding(mesh, P("fsdp", None, "tensor"))) for x in arrays]
described = jax.device_put(described, NamedSharding(mesh, P("fsdp")))
step = jax.jit(partial(slopes, "blockwise")).lower(described, there).compile()
found = step(described, there)
for ours, theirs in zip(found, expected):
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert ours.sharding.spec == P("fsdp", None, "tensor"), ours.sharding
text = step.as_text()
assert not any(each in text for each in ("all-gather", "all-reduce", "all-to-all", "permute"))
"""


@pytest.mark.slow
def test_devices_attend_for_their_own_rows_and_heads():
    done = subprocess.run(
        [sys.executable, "-c", SPREAD], env=environment(4), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
