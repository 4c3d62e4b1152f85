"""Products of arrays, computed as the rule in force says; see `quant.precision`.

Under a rule of halves, float32 arrays are multiplied in float16 on cards whose matrix units have no
other 16-bit type. A float16 number ends at 65,504, so both arrays are first scaled: by a power of
two for every index that is not summed over, which brings the largest value along the summed axes
near 2^14. Sums are float32 and are scaled back, so that what overflows or vanishes in float16 does
not do so here, and only the rounding to 11 significant bits is lost.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxtune.quant import precision

TOP = 14  # exponent of the largest scaled value; float16 ends at 2^16
MANTISSA, BIAS = 23, 127  # of float32: bits below the exponent, and the exponent's offset
LEAST, MOST = -100, 100  # exponents of scales; beyond these, scales would leave float32's range


def einsum(axes: str, one: jax.Array, other: jax.Array, output: Any = None) -> jax.Array:
    """Returns a product of two arrays, accumulated in dtype `output`.

    Args:
      axes: Axes of both arrays and of the product, such as "ni,io->no". Every axis is in two of the
        three, so that the gradients are products of this kind, too.
      one: An array.
      other: Another one, of the same dtype.
      output: dtype of the product; by default that of the arrays.

    Returns:
      The product, as `jnp.einsum` returns it.
    """
    if precision.in_halves() and one.dtype == jnp.float32 == other.dtype:
        return _scaled(axes, one, other)
    return jnp.einsum(axes, one, other, preferred_element_type=output or one.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scaled(axes: str, one: jax.Array, other: jax.Array) -> jax.Array:
    """Returns the product of float32 arrays, which are scaled and multiplied in float16."""
    first, second, result = _letters(axes)
    (one, low), (other, lower) = (
        _halved(x, tuple(letters.index(letter) for letter in letters if letter not in result))
        for x, letters in ((one, first), (other, second))
    )
    found = jnp.einsum(axes, one, other, preferred_element_type=jnp.float32)
    return found * _spread(low, first, result) * _spread(lower, second, result)


def _saved(axes: str, one: jax.Array, other: jax.Array) -> tuple[jax.Array, tuple]:
    return _scaled(axes, one, other), (one, other)


def _pulled(axes: str, saved: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the gradients of both arrays, each a product that is scaled anew."""
    first, second, result = _letters(axes)
    one, other = saved
    return (
        _scaled(f"{result},{second}->{first}", gradient, other),
        _scaled(f"{first},{result}->{second}", one, gradient),
    )


_scaled.defvjp(_saved, _pulled)


def _letters(axes: str) -> tuple[str, str, str]:
    """Returns the axes of both arrays and of their product."""
    arrays, result = axes.split("->")
    first, second = arrays.split(",")
    return first, second, result


def _halved(x: jax.Array, summed: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Returns scaled values in float16, and the factor that scales them back, 1 along `summed`."""
    top = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=summed, keepdims=True))
    bits = jax.lax.bitcast_convert_type(top, jnp.int32) >> MANTISSA
    exponent = jnp.clip(bits - BIAS + 1 - TOP, LEAST, MOST)
    return (x * _power(-exponent)).astype(jnp.float16), _power(exponent)


def _power(exponent: jax.Array) -> jax.Array:
    """Returns 2.0 to the power of an int32 within the range of scales, from its bits.

    `jnp.ldexp` and `jnp.frexp` do the same, but are most of a program's instructions then.
    """
    return jax.lax.bitcast_convert_type((exponent + BIAS) << MANTISSA, jnp.float32)


def _spread(scale: jax.Array, letters: str, result: str) -> jax.Array:
    """Returns scales of an array with axes of 1 where it is summed, as they apply to a product."""
    kept = [letter for letter in result if letter in letters]
    order = [letters.index(letter) for letter in kept]
    order += [axis for axis, letter in enumerate(letters) if letter not in result]
    sizes = [scale.shape[letters.index(each)] if each in letters else 1 for each in result]
    return scale.transpose(order).reshape(sizes)
