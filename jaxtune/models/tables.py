"""Parts of a large table, without the whole of it in a wider dtype.

XLA's CPU backend knows no bfloat16: to read a row of such a table it makes float32 of all rows, and
keeps that while a loop runs. There, parts are read as the bits that they are.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

BLOCK = 4096  # the fewest rows of a block; as many at a time suit a processor's cache
Read = Callable[[jax.Array, jax.Array], jax.Array]  # of a table and an index


def rows(table: jax.Array, index: jax.Array, dtype: Any) -> jax.Array:  # [V, D], int32[...]
    """The rows of an index, in a dtype; NaN where there is no such row."""
    return _read(table, index, _rows, dtype)


def blocks(table: jax.Array) -> jax.Array:  # [V, D] -> [W, N, D]
    """A block is every so manieth row: a table split over devices by rows stays where it is."""
    count = 1
    while table.shape[0] % (2 * count) == 0 and table.shape[0] // (2 * count) >= BLOCK:
        count *= 2
    return table.reshape(-1, count, table.shape[-1])


def block(table: jax.Array, number: jax.Array, dtype: Any) -> jax.Array:  # [W, N, D] -> [W, D]
    """One of the blocks, in a dtype."""
    return _read(table, number, _block, dtype)


def scores(x: jax.Array, table: jax.Array) -> jax.Array:  # [..., D], [V, D] -> float32[..., V]
    """The product of `x` with every row."""
    ways = {"default": _scores}
    if table.dtype == jnp.bfloat16 != x.dtype:
        ways["cpu"] = _scores_by_block
    return jax.lax.platform_dependent(x, table, **ways) if len(ways) > 1 else _scores(x, table)


def _scores(x: jax.Array, table: jax.Array) -> jax.Array:
    table = table.astype(x.dtype)
    return jnp.einsum("...d,vd->...v", x, table, preferred_element_type=jnp.float32)


def _scores_by_block(x: jax.Array, table: jax.Array) -> jax.Array:
    parts = blocks(table)
    numbers = jnp.arange(parts.shape[1])
    found = jax.lax.map(lambda number: _scores(x, block(parts, number, x.dtype)), numbers)
    return jnp.moveaxis(found, 0, -1).reshape(*x.shape[:-1], -1)


def _rows(table: jax.Array, index: jax.Array) -> jax.Array:
    return jnp.take(table, index, axis=0)


def _block(table: jax.Array, number: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(table, number, 1, keepdims=False)


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _read(table: jax.Array, index: jax.Array, read: Read, dtype: Any) -> jax.Array:
    if table.dtype != jnp.bfloat16:
        return _plainly(table, index, read, dtype)
    ways = {"cpu": _by_bits, "default": _plainly}
    given = {name: partial(way, read=read, dtype=dtype) for name, way in ways.items()}
    return jax.lax.platform_dependent(table, index, **given)


@_read.defjvp
def _derivative(read, dtype, primals, tangents):
    return _read(*primals, read, dtype), _plainly(tangents[0], primals[1], read, dtype)


def _plainly(table: jax.Array, index: jax.Array, read: Read, dtype: Any) -> jax.Array:
    return read(table, index).astype(dtype)


def _by_bits(table: jax.Array, index: jax.Array, read: Read, dtype: Any) -> jax.Array:
    # Seen to depend on the index, the table is not taken for what a loop could prepare beforehand.
    table, index = jax.lax.optimization_barrier((table, index))
    bits = read(jax.lax.bitcast_convert_type(table, jnp.uint16), index)
    # What is filled in for a row that is not there, all ones, is a NaN of bfloat16.
    wide = jax.lax.bitcast_convert_type(bits.astype(jnp.uint32) << 16, jnp.float32)
    return wide.astype(dtype)
