"""bitsandbytes' dynamic map of 256 values, with encoding to and decoding from such a table.

The 8-bit moments of the optimiser and the scales of double quantisation are codes of this map.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

DECADES = 7


@cache
def dynamic_map(signed: bool) -> np.ndarray:  # float32[256], ascending
    """Returns the value of every code: 0, 1, and in each decade the midpoints of equal intervals.

    The highest decade has the most intervals, and each lower one half as many. A signed map holds
    the negated midpoints, too. Values equal bitsandbytes' to the bit, as torch computes them.
    """
    low, one = np.float32(0.1), np.float32(1)
    parts = []
    for decade in range(DECADES):
        count = 2**decade if signed else 2 ** (decade + 1)
        step, number = np.float64((one - low) / np.float32(count)), np.arange(count + 1)
        # torch.linspace computes each value from the nearer end, and rounds once.
        up, down = low + step * number, one - step * (count - number)
        edges = np.where(number < (count + 1) // 2, up, down).astype(np.float32)
        middles = (edges[1:] + edges[:-1]) / 2
        parts.append(middles * np.float32(10.0 ** (decade + 1 - DECADES)))
    positive = np.concatenate(parts)
    negative = -positive if signed else positive[:0]
    return np.sort(np.concatenate([negative, positive, [0, 1]]).astype(np.float32))


# A TPU looks up a table one element at a time, in 6 ns each on a v5e according to its compiler;
# comparing with all entries costs far less there. Both ways give the same results to the bit.


def nearest(values: jax.Array, table: np.ndarray) -> jax.Array:  # uint8[...]
    """Returns the code of the table entry nearest to each value; a tie goes to the lower entry."""
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
    """Returns the table entry of each code."""
    ways = {"tpu": partial(_sum, table), "default": partial(_read, table)}
    return jax.lax.platform_dependent(codes, **ways)


def _sum(table: np.ndarray, codes: jax.Array) -> jax.Array:
    entries = np.arange(len(table), dtype=np.uint8)
    return jnp.sum(jnp.where(codes[..., None] == entries, table, 0), axis=-1)


def _read(table: np.ndarray, codes: jax.Array) -> jax.Array:
    return jnp.asarray(table)[codes.astype(jnp.int32)]
