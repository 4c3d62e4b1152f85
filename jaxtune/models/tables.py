"""Reads and multiplies parts of a large table without converting all of it to a wider dtype.

XLA's CPU backend has no bfloat16 arithmetic: to read one row of a bfloat16 table it converts all
rows to float32, and keeps the copy while a loop runs. On CPUs, parts are therefore read as raw bits
and only these are converted.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxtune.quant import products

BLOCK = 4096  # tokens of a block, which fits a processor's cache beside the scores of many rows
FEW = 512  # tokens of a block to score a row with, which fits the smaller cache of a core
FEATURES = 128  # rows of a table [D, V] that columns are read from at a time
Read = Callable[[jax.Array, jax.Array], jax.Array]  # (table, index) -> part of the table


@struct.dataclass
class Extract:
    """The vectors of some tokens of a table, which `rows` takes in place of the whole table."""

    vectors: Any  # [N, D]
    places: Any  # int32[V], the row of each token in `vectors`, or N if it has none

    @classmethod
    def of(cls, table: Any, tokens: Any) -> "Extract":
        """Returns the vectors of the tokens of a batch, N of which depends on its shape alone.

        Both are NumPy arrays; or if either is a `jax.ShapeDtypeStruct`, shapes are returned.
        """
        size = table.shape[0]
        count = min(math.prod(tokens.shape), size)
        shapes = ((count, *table.shape[1:]), table.dtype), ((size,), np.int32)
        if any(isinstance(each, jax.ShapeDtypeStruct) for each in (table, tokens)):
            return cls(*(jax.ShapeDtypeStruct(*each) for each in shapes))
        distinct = np.unique(tokens)
        distinct = distinct[(distinct >= 0) & (distinct < size)]
        vectors, places = np.zeros(*shapes[0]), np.full(size, count, np.int32)
        vectors[: len(distinct)] = table[distinct]
        places[distinct] = np.arange(len(distinct))
        return cls(vectors, places)


def rows(
    table: jax.Array | Extract, index: jax.Array, dtype: Any, axis: int = 0
) -> jax.Array:  # [..., D]
    """Returns the vectors at `index`, int32[...], as `dtype`.

    Those outside the table, and those that an extract lacks, are NaN. The tokens of a table [V, D],
    or of its extract, are on axis 0, and those of one that is [D, V] on axis 1.
    """
    if isinstance(table, Extract):
        none = len(table.vectors)
        index = jnp.take(table.places, index, mode="fill", fill_value=none)
        table = table.vectors
    return _read(table, index, (_rows, _columns)[axis], dtype)


def fold(
    add: Callable[[Any, jax.Array], Any], start: Any, table: jax.Array, dtype: Any, axis: int = 0
) -> Any:
    """Folds a function over blocks of neighbouring tokens, the last of which may be smaller.

    Args:
      add: From what it returned before, and a block [W, D], to the same with the block.
      start: What it gets with the first block.
      table: [V, D], or with axis 1 [D, V].
      dtype: dtype of the blocks.
      axis: The axis of the tokens.

    Returns:
      What it returned for the last block.
    """
    whole, rest = divmod(table.shape[axis], BLOCK)

    def part(number: jax.Array | int, size: int) -> jax.Array:
        block = _block(table, dtype, axis, number * BLOCK, size)
        return block.T if axis else block

    if whole:
        numbers = jnp.arange(whole)
        start = jax.lax.scan(lambda got, at: (add(got, part(at, BLOCK)), None), start, numbers)[0]
    return add(start, part(whole, rest)) if rest else start


def scores(x: jax.Array, table: jax.Array, axis: int = 0) -> jax.Array:  # [n, D] -> float32[n, V]
    """Returns the dot product of `x` with the vector of every token, accumulated in float32.

    The tokens of a table [V, D] are on axis 0, and those of one that is [D, V] on axis 1.
    """
    plain = partial(_scores, axis=axis)
    if table.dtype != jnp.bfloat16 or x.dtype == jnp.bfloat16:
        return plain(x, table)
    ways = {"cpu": partial(_scores_by_block, axis=axis), "default": plain}
    return jax.lax.platform_dependent(x, table, **ways)


def _scores(x: jax.Array, table: jax.Array, axis: int) -> jax.Array:
    axes = ("nd,vd->nv", "nd,dv->nv")[axis]
    return products.einsum(axes, x, table.astype(x.dtype), jnp.float32)


def _scores_by_block(x: jax.Array, table: jax.Array, axis: int) -> jax.Array:
    whole, rest = divmod(table.shape[axis], FEW)

    @partial(jax.checkpoint, static_argnums=1)  # a gradient widens each block again
    def of_block(number: jax.Array | int, size: int) -> jax.Array:  # [n, size]
        return _scores(x, _block(table, x.dtype, axis, number * FEW, size), axis)

    if not whole:
        return of_block(0, rest)
    found = jax.lax.map(lambda number: of_block(number, FEW), jnp.arange(whole))
    found = jnp.moveaxis(found, 0, 1).reshape(len(x), -1)
    return jnp.concatenate([found, of_block(whole, rest)], -1) if rest else found


def _block(
    table: jax.Array, dtype: Any, axis: int, start: jax.Array | int, size: int
) -> jax.Array:  # [size, D], or with axis 1 [D, size]
    """Returns a block of neighbouring tokens of a table."""
    return _read(table, jnp.asarray(start), partial(_slice, size, axis), dtype)


def _rows(table: jax.Array, index: jax.Array) -> jax.Array:
    return jnp.take(table, index, axis=0)


def _columns(table: jax.Array, index: jax.Array) -> jax.Array:
    # A TPU transposes what it gathers columns from, so that is a few features at a time.
    ways = {"tpu": _columns_in_parts, "default": partial(jnp.take, axis=1)}
    return jnp.moveaxis(jax.lax.platform_dependent(table, index, **ways), 0, -1)


def _columns_in_parts(table: jax.Array, index: jax.Array) -> jax.Array:  # [D, ...]
    size = math.gcd(len(table), FEATURES)
    starts = jnp.arange(0, len(table), size)
    found = jax.lax.map(
        lambda start: jnp.take(_slice(size, 0, table, start), index, axis=1), starts
    )
    return found.reshape(-1, *index.shape)


def _slice(size: int, axis: int, table: jax.Array, start: jax.Array) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(table, start, size, axis)


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
    # The barrier makes the table depend on the index, so that XLA does not hoist its conversion
    # out of a loop.
    table, index = jax.lax.optimization_barrier((table, index))
    bits = read(jax.lax.bitcast_convert_type(table, jnp.uint16), index)
    # For an index outside the table, `take` fills in bits that are all ones: a bfloat16 NaN.
    wide = jax.lax.bitcast_convert_type(bits.astype(jnp.uint32) << 16, jnp.float32)
    return wide.astype(dtype)
