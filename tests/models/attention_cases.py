"""Queries, keys and values of attention, layouts of them, and two forms of it compared."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune.models import gpu_kernels
from jaxtune.models import splash as tpu
from jaxtune.models.attention import attend
from jaxtune.models.layout import arrange

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


def prefixed(length: int) -> np.ndarray:
    """False in a prefix, which the first row has and the second has not."""
    return np.arange(length) >= np.array([[length // 3], [0]])


def one_kind(window):
    return dict(kind=jnp.int32(0), windows=(window,), scale=SCALE)


def plain(q, k, v, layout, **how):
    return attend(q, k, v, layout, layout, **how, implementation="plain")


@functools.cache
def gradients(form, windows, softcap=None):
    """A jitted form's output, and gradients of its sum weighted by `weight`.

    Layouts are arguments, as they are of a model's programs: those of one shape share a program.
    """
    how = dict(windows=windows, scale=SCALE) | ({} if softcap is None else dict(softcap=softcap))

    def loss(q, k, v, layout, kind, weight):
        out = form(q, k, v, layout, kind=kind, **how).astype(jnp.float32)
        return (out * weight).sum(), out

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))


def compare(kernel, described, arrays, tolerance, windows=(None,), kind=0, softcap=None):
    """A kernel gives the plain form's output and gradients wherever a token is valid.

    `described` are arguments of `arrange`; None: every query sees every key.
    """
    batch, length = arrays[0].shape[:2]
    layout = None if described is None else arrange((batch, length), **described)
    valid = np.asarray((described or {}).get("valid", np.ones((batch, length), bool)))
    shape = arrays[0].shape
    weight = np.random.default_rng(2).standard_normal(shape) * valid[:, :, None, None]
    (_, expected), expected_grads = gradients(plain, windows, softcap)(
        *arrays, layout, kind, weight
    )
    (_, got), got_grads = gradients(kernel, windows, softcap)(*arrays, layout, kind, weight)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got[valid], expected[valid], atol=tolerance)
    for each, other in zip(got_grads, expected_grads, strict=True):
        wide = [np.asarray(x, np.float32) for x in (each, other)]
        np.testing.assert_allclose(*wide, atol=tolerance * np.abs(wide[1]).max())


splash = partial(tpu.splash, interpret=True)
cudnn = partial(gpu_kernels.cudnn, implementation="xla")
# Float32 on both sides; only the order of some 300 additions differs.
SUMS = 2e-5
