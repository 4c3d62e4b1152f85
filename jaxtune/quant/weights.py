"""Weights in 4 and 8 bits: codes, and a scale for each block of values.

A block is 64 inputs in a row of one output, as in bitsandbytes, whose blocks run along published
[out, in] weights. If the inputs are no multiple of 64, these blocks run on into the next output:
they are then kept side by side, each like an output of 64 inputs, the last filled up with zeros.
"""

import math
import operator
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import struct
from jax.sharding import PartitionSpec

from jaxtune import tree
from jaxtune.quant import block_scales

# What a code stands for, as a share of its block's scale. NF4 has the quantiles of a normal
# distribution, FP4 the numbers of one sign, two exponent bits and one fraction bit.
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
FP4 = tuple(
    sign * value
    for sign in (1.0, -1.0)
    for value in (0.0, 0.005208333333, 0.66666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25)
)
SMALLEST = 1e-38  # by which bitsandbytes divides, where all of a block is smaller
CHUNK = 2**18  # values quantised at a time, so that they stay in the processor's cache

# The decoder's linear maps; embeddings, heads, norms and picture towers are kept.
LINEAR = r"(llm/)?layers/(attn/[qkvo]|mlp/(gate|up|down))/w"


@dataclass(frozen=True)
class Kind:
    """How values become codes: entries of a table, or whole multiples of the scale."""

    dtype: np.dtype
    bits: int
    table: tuple[float, ...] | None
    block: int | None  # None: all inputs of an output
    double: bool = False  # the scales are quantised, too


_UINT4, _INT4 = np.dtype(ml_dtypes.uint4), np.dtype(ml_dtypes.int4)
KINDS = {
    "nf4": Kind(_UINT4, 4, NF4, 64),
    "nf4-double": Kind(_UINT4, 4, NF4, 64, double=True),
    "int4": Kind(_INT4, 4, None, 64),
    "int8": Kind(np.dtype(np.int8), 8, None, None),
    # These are only read.
    "fp4": Kind(_UINT4, 4, FP4, 64),
    "fp4-double": Kind(_UINT4, 4, FP4, 64, double=True),
}
MADE = ("nf4", "nf4-double", "int4", "int8")


@struct.dataclass
class Quantized:
    """A weight [..., in, out] as codes and scales; arrays are stacked by layers as weights are."""

    codes: Any  # [..., blocks, block, out]
    scales: Any  # float32[..., blocks, out], or uint8 if they are quantised
    peaks: Any = None  # float32[..., n], of each 256 scales
    offset: Any = None  # float32[...], the scales' mean
    kind: str = struct.field(pytree_node=False, default="nf4")
    matrix: tuple[int, int] = struct.field(pytree_node=False, default=(0, 0))  # in, out

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape."""
        return (*self.codes.shape[:-3], *self.matrix)

    @property
    def ndim(self) -> int:
        """How many dimensions the weight has."""
        return len(self.shape)

    @property
    def sharding(self) -> Any:
        """How its codes lie on the devices."""
        return self.codes.sharding

    def astype(self, dtype: Any) -> jax.Array:  # [..., in, out]
        """The weight as plain numbers, computed in float32."""
        return dequantize(self, dtype)

    def __getitem__(self, layer: Any) -> "Quantized":
        """One layer, or some, of a stacked weight."""
        return jax.tree.map(operator.itemgetter(layer), self)


def is_quantized(node: Any) -> bool:
    """Whether this is a quantised weight: a leaf, where a tree's leaves are weights."""
    return isinstance(node, Quantized)


def by_path(weights: Mapping) -> dict[str, Any]:
    """Weights by slash path, plain and quantised ones."""
    return tree.flatten(weights, is_leaf=is_quantized)


def same(one: Quantized, other: Quantized) -> bool:
    """Whether two weights have the same codes and scales."""
    if jax.tree.structure(one) != jax.tree.structure(other):
        return False
    return all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(other)))


def kinds(paths: Iterable[str], given: "str | tree.Rules | None") -> dict[str, str]:
    """What the weights are held as that are quantised, by path.

    `given` is a kind, for all linear maps of the layers, or rules: patterns over paths to a kind
    or None, of which the first that matches decides.
    """
    paths = list(paths)
    if given is None:
        return {}
    rules = [(LINEAR, given), (r".*", None)] if isinstance(given, str) else given
    found = tree.match(rules, paths, unused="allow" if isinstance(given, str) else "error")
    for path, kind in found.items():
        if kind is not None and kind not in MADE:
            raise ValueError(f"quant {kind!r}: expected one of {', '.join(MADE)}")
        if kind is not None and not re.fullmatch(LINEAR, path):
            raise ValueError(f"quant: {path} is no linear map of a layer, and only these can be")
    return {path: kind for path, kind in found.items() if kind is not None}


def abstract(shape: tuple[int, ...], kind: str) -> Quantized:  # of [..., in, out]
    """The shapes and dtypes of a weight's arrays when quantised."""
    how, layers = KINDS[kind], shape[:-2]
    blocks, block, outputs = grid(shape[-2:], how.block)

    def array(dtype, *sizes):
        return jax.ShapeDtypeStruct((*layers, *sizes), dtype)

    made = Quantized(
        codes=array(how.dtype, blocks, block, outputs),
        scales=array(np.uint8 if how.double else np.float32, blocks, outputs),
        kind=kind,
        matrix=tuple(shape[-2:]),
    )
    if not how.double:
        return made
    peaks = array(np.float32, -(-blocks * outputs // block_scales.BLOCK))
    return made.replace(peaks=peaks, offset=array(np.float32))


def quantize(w: np.ndarray, kind: str) -> Quantized:  # [..., in, out]
    """A weight's codes and scales as NumPy arrays, computed a few outputs at a time."""
    if kind not in MADE:
        raise ValueError(f"quant {kind!r}: expected one of {', '.join(MADE)}")
    if w.ndim > 2:
        layers = [quantize(layer, kind) for layer in w]
        return jax.tree.map(lambda *arrays: np.stack(arrays), *layers)
    how = KINDS[kind]
    blocks, block, outputs = grid(w.shape, how.block)
    rows = _rows(w, block)  # [outputs, blocks * block]
    codes = np.empty((blocks, block, outputs), np.uint8)
    scales = np.empty((blocks, outputs), np.float32)
    whole = len(rows) if w.size == codes.size else len(rows) - 1

    def fill(part: slice) -> None:
        values = rows[part].astype(np.float32).reshape(-1, blocks, block)
        with np.errstate(invalid="ignore"):  # told of below
            some, peaks = _rounded(values, how, alone=part.stop > whole)
        codes[..., part], scales[:, part] = some.transpose(1, 2, 0), peaks.T

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(fill, _parts(rows, whole)))
    if not np.isfinite(scales).all():
        raise ValueError("a weight that is infinite or no number cannot be quantised")
    made = Quantized(codes.view(how.dtype), scales, kind=kind, matrix=w.shape)
    if not how.double:
        return made
    small, peaks, offset = block_scales.pack(scales.T.reshape(-1))
    return made.replace(scales=small.reshape(outputs, blocks).T, peaks=peaks, offset=offset)


@partial(jax.jit, static_argnames="dtype")
def dequantize(w: Quantized, dtype: Any = jnp.float32) -> jax.Array:  # [..., in, out]
    """The weight that codes and scales stand for, computed in float32, a layer at a time."""
    if w.ndim > 2:
        return jax.lax.map(partial(dequantize, dtype=dtype), w)
    table = KINDS[w.kind].table
    values = look_up(w.codes, np.float32(table)) if table else w.codes.astype(jnp.float32)
    values = (values * plain_scales(w)[..., None, :]).astype(dtype)
    *layers, blocks, block, outputs = values.shape
    inputs = w.matrix[0]
    if blocks * block == inputs:
        return values.reshape(*layers, inputs, outputs)
    published = values.reshape(*layers, block, outputs).swapaxes(-1, -2).reshape(*layers, -1)
    size = math.prod(w.matrix)
    return published[..., :size].reshape(*layers, *w.matrix[::-1]).swapaxes(-1, -2)


def plain_scales(w: Quantized) -> jax.Array:  # float32[..., blocks, out]
    """The scales of a weight's blocks, also where they are quantised."""
    if w.peaks is None:
        return w.scales
    return block_scales.unpack(w.scales, w.peaks, w.offset, look_up)


def dot(x: jax.Array, w: Any, output: Any = None) -> jax.Array:  # [n, in], [in, out] -> [n, out]
    """x @ w, in `x`'s dtype or accumulated into `output`; `w` is plain or quantised.

    A quantised weight is dequantised again for the gradient: no plain one is kept till then.
    """
    product = partial(jnp.dot, preferred_element_type=output or x.dtype)
    if not isinstance(w, Quantized):
        return product(x, w.astype(x.dtype))
    return jax.checkpoint(lambda x, w: product(x, w.astype(x.dtype)))(x, w)


def specs(w: Quantized, spec: PartitionSpec, fitted: Callable) -> Quantized:
    """How a weight's arrays lie on a mesh on which the plain weight would lie as `spec` says.

    `fitted` takes from a spec what does not divide an array of some shape.
    """
    *layers, inside, outside = (*spec, *(None,) * (w.ndim - len(spec)))
    of_blocks = PartitionSpec(*layers, inside, outside)
    scales = fitted(of_blocks, w.scales.shape)
    # Where blocks cannot be divided among devices, the values in them still may be.
    split = (inside, None) if scales[-2] else (None, inside)
    whole = fitted(PartitionSpec(*layers), w.codes.shape)
    return Quantized(
        codes=fitted(PartitionSpec(*layers, *split, outside), w.codes.shape),
        scales=scales,
        peaks=None if w.peaks is None else whole,
        offset=None if w.offset is None else whole,
        kind=w.kind,
        matrix=w.matrix,
    )


def look_up(codes: jax.Array, table: np.ndarray) -> jax.Array:  # uint[...] -> float32[...]
    """The entry of each code; the table's length is a power of two."""
    # A TPU reads a table one element at a time, where choosing between halves by each bit of the
    # code is some hundred times faster; on a CPU, the choices are not fused and fill memory.
    ways = {"tpu": partial(_choose, table), "default": partial(_read, table)}
    return jax.lax.platform_dependent(codes.astype(jnp.uint8), **ways)


def nbytes(shape: tuple[int, ...], kind: str) -> int:
    """The bytes that a weight of this shape takes when quantised."""
    how = KINDS[kind]
    blocks, block, outputs = grid(shape[-2:], how.block)
    scales = blocks * outputs
    packed = -(-blocks * block * outputs * how.bits // 8)
    double = scales + 4 * -(-scales // block_scales.BLOCK) + 4
    return math.prod(shape[:-2]) * (packed + (double if how.double else 4 * scales))


def grid(matrix: tuple[int, int], block: int | None) -> tuple[int, int, int]:
    """The shape of the codes of a matrix [in, out]: how many blocks, of what length, side by side.

    See above for inputs that are no multiple of the block.
    """
    inputs, outputs = matrix
    block = block or inputs
    if inputs % block == 0:
        return inputs // block, block, outputs
    return 1, block, -(-inputs * outputs // block)


def _rows(w: np.ndarray, block: int) -> np.ndarray:  # [in, out] -> [out, in], or [blocks, block]
    if len(w) % block == 0:
        return w.T
    filled = np.zeros(-(-w.size // block) * block, w.dtype)
    filled[: w.size] = w.T.reshape(-1)
    return filled.reshape(-1, block)


def _parts(rows: np.ndarray, whole: int) -> Iterator[slice]:
    """Runs of rows of about `CHUNK` values; a last row that is not whole comes alone."""
    step = max(1, CHUNK // rows.shape[1])
    yield from (slice(start, min(start + step, whole)) for start in range(0, whole, step))
    if whole < len(rows):
        yield slice(whole, len(rows))


def _rounded(values: np.ndarray, how: Kind, alone: bool) -> tuple[np.ndarray, np.ndarray]:
    """Codes uint8[n, blocks, block], and scales float32[n, blocks]."""
    peaks = np.abs(values).max(axis=-1)
    if how.table is None:
        most = np.float32(2 ** (how.bits - 1) - 1)
        peaks = np.maximum(peaks, np.float32(SMALLEST) * most)
        codes = np.rint(values * (most / peaks)[..., None]).astype(np.int8)
        return codes.view(np.uint8), peaks / most
    divisors = np.maximum(peaks, np.float32(SMALLEST))
    # bitsandbytes treats a block that is not whole in its own way.
    shares = values / divisors[..., None] if alone else values * (1 / divisors)[..., None]
    table = np.float32(how.table)
    codes = np.zeros(values.shape, np.uint8)
    for middle in (table[1:] + table[:-1]) / 2:
        codes += shares > middle
    return codes, divisors if alone else peaks


def _choose(table: np.ndarray, codes: jax.Array) -> jax.Array:
    entries = list(table)
    for bit in range(len(table).bit_length() - 1):
        odd = (codes & (1 << bit)) != 0
        entries = [jnp.where(odd, *pair) for pair in zip(entries[1::2], entries[::2], strict=True)]
    return entries[0]


def _read(table: np.ndarray, codes: jax.Array) -> jax.Array:
    return jnp.asarray(table).at[codes].get(mode="promise_in_bounds")
