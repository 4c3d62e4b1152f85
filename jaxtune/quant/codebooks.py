"""bitsandbytes' dynamic map of 256 fractions, and the search and look-up of codes in such a table.

8-bit moments and the scales of double quantisation are codes of it.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

DECADES = 7


@cache
def dynamic_map(signed: bool) -> np.ndarray:  # float32[256], rising
    """What each code stands for: 0, 1, and in each decade the middles of equal parts.

    The highest decade has most parts, and each below half as many. The last bits are those of
    torch's arithmetic, by which bitsandbytes makes its maps.
    """
    low, one = np.float32(0.1), np.float32(1)
    parts = []
    for decade in range(DECADES):
        count = 2**decade if signed else 2 ** (decade + 1)
        step, number = np.float64((one - low) / np.float32(count)), np.arange(count + 1)
        # torch.linspace goes from the nearer end, and rounds once.
        up, down = low + step * number, one - step * (count - number)
        edges = np.where(number < (count + 1) // 2, up, down).astype(np.float32)
        middles = (edges[1:] + edges[:-1]) / 2
        parts.append(middles * np.float32(10.0 ** (decade + 1 - DECADES)))
    positive = np.concatenate(parts)
    negative = -positive if signed else positive[:0]
    return np.sort(np.concatenate([negative, positive, [0, 1]]).astype(np.float32))


# A TPU reads a table one element at a time, for a v5e 6 ns each by its compiler's account; going
# over all entries costs it far less. The results are the same to the bit.


def nearest(values: jax.Array, table: np.ndarray) -> jax.Array:  # uint8[...]
    """The entry next to each value; of two as near, the lower one."""
    middles = (table[1:] + table[:-1]) / 2
    ways = {"tpu": partial(_count, middles), "default": partial(_search, middles)}
    return jax.lax.platform_dependent(values, **ways)


def _count(middles: np.ndarray, values: jax.Array) -> jax.Array:
    return jnp.sum(values[..., None] > middles, axis=-1, dtype=jnp.int32).astype(jnp.uint8)


def _search(middles: np.ndarray, values: jax.Array) -> jax.Array:
    bounds = jnp.asarray(np.append(middles, np.float32(np.inf)))
    found = jnp.zeros(values.shape, jnp.int32)
    for step in (128, 64, 32, 16, 8, 4, 2, 1):
        found = jnp.where(values > bounds[found + (step - 1)], found + step, found)
    return found.astype(jnp.uint8)


def looked_up(codes: jax.Array, table: np.ndarray) -> jax.Array:  # float32[...]
    ways = {"tpu": partial(_sum, table), "default": partial(_read, table)}
    return jax.lax.platform_dependent(codes, **ways)


def _sum(table: np.ndarray, codes: jax.Array) -> jax.Array:
    entries = np.arange(len(table), dtype=np.uint8)
    return jnp.sum(jnp.where(codes[..., None] == entries, table, 0), axis=-1)


def _read(table: np.ndarray, codes: jax.Array) -> jax.Array:
    return jnp.asarray(table)[codes.astype(jnp.int32)]
