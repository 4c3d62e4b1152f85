"""The splash kernel, interpreted, against plain attention."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune.display.errors import UserError
from jaxtune.models import splash as module
from jaxtune.models.attention import attend, choose
from jaxtune.models.layout import arrange
from tests.models.attention_cases import (
    SCALE,
    SUMS,
    both,
    compare,
    packed,
    padded,
    prefixed,
    splash,
    tensors,
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "described, windows, kind, softcap",
    [
        ({}, (70, None), 0, 2.0),
        (dict(valid=padded(300)), (70, None), 1, None),
        (dict(causal=prefixed(300)), (300, None), 0, 2.0),
        (dict(causal=prefixed(300), **both(300)), (None,), 0, None),
        (None, (None,), 0, None),
    ],
)
def test_splash_is_the_plain_form(monkeypatch, described, windows, kind, softcap):
    monkeypatch.setattr(module, "BLOCK", 128)  # three blocks, the last of them filled up
    arrays = tensors(length=300, heads=2, kv_heads=1, size=128)
    compare(splash, described, arrays, SUMS, windows, kind, softcap)


@pytest.mark.parametrize("dtype, expected", [("float32", "HIGHEST"), ("bfloat16", "DEFAULT")])
def test_both_passes_are_traced_at_the_precision_of_the_call(dtype, expected):
    """The backward pass as well, though JAX traces it when the setting is no more in force."""
    arrays = tensors(length=128, heads=2, kv_heads=1, size=128, dtype=jnp.dtype(dtype))
    layout = arrange((2, 128), segments=packed(128))

    def loss(*arrays):
        with jax.default_matmul_precision("highest"):
            how = dict(kind=jnp.int32(0), windows=(70, None), scale=SCALE)
            return attend(*arrays, layout, layout, **how, implementation="splash").sum()

    program = str(jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(*arrays))
    # Each window: logits and their products with values; again for dq and its product; dk and dv.
    products = re.findall(r"= dot_general\[.*?\]\s", program, re.DOTALL)
    assert len(products) >= 2 * (2 + 3 + 4)
    asked = [f"precision=(Precision.{expected}, Precision.{expected})" in each for each in products]
    assert all(asked)


def test_a_precision_that_does_not_compile_is_refused():
    q = jnp.zeros((1, 128, 2, 128))
    with jax.default_matmul_precision("high"):
        with pytest.raises(UserError, match="the default or the highest precision, not 'high'"):
            choose("splash", q, None, None, (None,), None)
        assert choose("splash", q.astype(jnp.bfloat16), None, None, (None,), None) == "splash"


@pytest.mark.slow
def test_splash_in_bfloat16():
    # Every logit comes of q rounded once more than in the plain form: 2**-9 of logits up to 10.
    arrays = tensors(length=130, heads=4, kv_heads=2, size=80, dtype=jnp.bfloat16)
    compare(splash, both(130), arrays, 4e-2, (40,))


@pytest.mark.parametrize("length", [128, 513, 1100, 2048, 5000])
def test_blocks_hold_a_sequence_with_little_to_spare(length):
    block, whole = module._blocks(length)
    assert block % module.LANES == 0 and block <= module.BLOCK and whole % block == 0
    assert 0 <= whole - length < module.LANES * whole // block


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
