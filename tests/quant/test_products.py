"""Products in scaled float16: as exact as float16 can be, and without overflow."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune.quant import precision, products

AXES = ["ni,io->no", "btkgh,bskh->bktgs", "bktgs,bskh->btkgh", "bkrs,bkrh->bksh", "abd,vd->abv"]
SIZES = dict(n=24, i=40, o=32, b=2, t=12, k=2, g=3, h=16, s=20, r=36, a=2, d=40, v=48)
HALVES = precision.RULES["float16"]


def arrays(axes: str, factor: float = 1.0):
    """Two arrays whose rows differ in size by up to 10^8."""
    random = np.random.default_rng(0)
    first, second = axes.split("->")[0].split(",")

    def made(letters: str) -> np.ndarray:
        sizes = [SIZES[letter] for letter in letters]
        powers = random.uniform(-4, 4, (*sizes[:1], *[1] * (len(sizes) - 1)))
        return np.float32(factor * random.standard_normal(sizes) * 10**powers)

    return made(first), made(second)


def pulled(axes: str, one, other):
    """The product, and the gradients of both arrays for one gradient of the product."""

    def traced(one, other):
        found, pull = jax.vjp(lambda one, other: products.einsum(axes, one, other), one, other)
        return found, *pull(jnp.asarray(gradient(found.shape)))

    return jax.jit(traced)(one, other)


def gradient(shape) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape, np.float32)


def exact(axes: str, one, other):
    """The same in float64."""
    first, second, result = *axes.split("->")[0].split(","), axes.split("->")[1]
    found = np.einsum(axes, one, other)
    back = np.abs(gradient(found.shape)) if (one >= 0).all() else gradient(found.shape)
    return (
        found,
        np.einsum(f"{result},{second}->{first}", np.float64(back), other),
        np.einsum(f"{first},{result}->{second}", one, np.float64(back)),
    )


@pytest.mark.parametrize("axes", AXES)
def test_products_and_gradients_round_as_float16(axes):
    one, other = arrays(axes)
    with HALVES.entered():
        found = pulled(axes, one, other)
    wide = exact(axes, np.float64(one), np.float64(other))
    # Each factor of a summand is rounded to 11 bits, so by at most 2^-11 of itself.
    most = exact(axes, np.abs(np.float64(one)), np.abs(np.float64(other)))
    for ours, wanted, size in zip(found, wide, most, strict=True):
        error = np.abs(ours - wanted) / size
        assert 2**-20 < error.max() < 2**-10


@pytest.mark.parametrize("factor", [1e-12, 1e6, 1e12])
def test_large_and_small_values_neither_overflow_nor_vanish(factor):
    axes = "ni,io->no"
    with HALVES.entered():
        usual = pulled(axes, *arrays(axes))
        scaled = pulled(axes, *arrays(axes, np.float32(2.0 ** round(np.log2(factor)))))
    power = 2.0 ** round(np.log2(factor))
    for one, other, factors in zip(usual, scaled, (power**2, power, power), strict=True):
        np.testing.assert_allclose(other, one * np.float32(factors), rtol=1e-6)


def test_zeros_and_what_is_not_finite():
    with HALVES.entered():
        nothing = products.einsum("ni,io->no", jnp.zeros((3, 4)), jnp.ones((4, 5)))
        infinite = products.einsum("ni,io->no", jnp.full((3, 4), jnp.inf), jnp.ones((4, 5)))
    np.testing.assert_array_equal(nothing, np.zeros((3, 5)))
    assert not np.isfinite(infinite).any()


def test_a_rule_ends_with_its_context():
    one, other = map(jnp.asarray, arrays("ni,io->no"))
    product = jax.jit(lambda one, other: products.einsum("ni,io->no", one, other))
    before = product(one, other)
    with HALVES.entered():
        halves = product(one, other)
        with precision.RULES["highest"].entered():
            np.testing.assert_array_equal(product(one, other), before)
    assert (np.asarray(halves) != np.asarray(before)).any()
    np.testing.assert_array_equal(product(one, other), before)


def test_members_are_multiplied_as_each_alone():
    one, other = arrays("ni,io->no")
    many = jnp.stack([one, 3 * one, one / 7])
    with HALVES.entered():
        product = partial(products.einsum, "ni,io->no")
        found = jax.jit(jax.vmap(product, (0, None)))(many, other)
        alone = [jax.jit(product)(each, other) for each in many]
    sizes = np.abs(many) @ np.abs(other)  # sums of float32 in another order
    assert (np.abs(found - np.stack(alone)) < 1e-6 * sizes).all()
