"""Weights in 4 and 8 bits: codes, and one scale per block of values.

A 4-bit block is 64 consecutive inputs of one output, as in bitsandbytes, whose blocks run along the
rows of published [out, in] weights. If the number of inputs is no multiple of 64, such blocks
continue into the next output. They are then stored side by side, each like an output with 64
inputs, and the last block is padded with zeros.

A byte holds two 4-bit codes of a block: that of an input of its first half in the low bits, and in
the high bits that of the input half a block later. They are bytes because compilers widen whole
stacks of 4-bit arrays before a loop over layers slices them; a byte is split in the loop.
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
import numpy as np
from flax import struct
from jax.sharding import PartitionSpec

from jaxtune import tree
from jaxtune.display.errors import UserError
from jaxtune.quant import block_scales, products
from jaxtune.tree import modules

# The value of each code, as a fraction of its block's scale. NF4 holds quantiles of a normal
# distribution; FP4 holds the numbers with a sign bit, two exponent bits and one fraction bit.
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
SMALLEST = 1e-38  # the least divisor of a block's values, as in bitsandbytes
CHUNK = 2**18  # values quantised at a time, so that they stay in the processor's cache

# The decoder's linear maps. Embeddings, heads, norms and vision towers are never quantised.
LINEAR = r"(llm/)?layers/(attn/[qkvo]|mlp/(gate|up|down))/w"


@dataclass(frozen=True)
class Kind:
    """A quantisation scheme: codes index a table, or less `zero` are multiples of the scale."""

    dtype: np.dtype  # of stored codes; a uint8 holds two of 4 bits
    bits: int
    table: tuple[float, ...] | None
    block: int | None  # inputs that share a scale; None: all inputs of an output
    double: bool = False  # whether the scales are quantised, too
    zero: int = 0  # the code of the value 0, if there is no table


_UINT8 = np.dtype(np.uint8)
KINDS = {
    "nf4": Kind(_UINT8, 4, NF4, 64),
    "nf4-double": Kind(_UINT8, 4, NF4, 64, double=True),
    "int4": Kind(_UINT8, 4, None, 64, zero=8),
    "int8": Kind(np.dtype(np.int8), 8, None, None),
    # Checkpoints in these kinds are read, but none are written.
    "fp4": Kind(_UINT8, 4, FP4, 64),
    "fp4-double": Kind(_UINT8, 4, FP4, 64, double=True),
}
MADE = ("nf4", "nf4-double", "int4", "int8")


@struct.dataclass
class Quantized:
    """A quantised weight [..., in, out], whose leading axes, such as layers, all arrays share."""

    codes: Any  # [..., blocks, block, out] of 8 bits, or uint8[..., blocks, block / 2, out] of 4
    scales: Any  # float32[..., blocks, out], or uint8 if they are quantised
    peaks: Any = None  # float32[..., n], the largest magnitude of every 256 scales less offset
    offset: Any = None  # float32[...], the mean of the scales
    kind: str = struct.field(pytree_node=False, default="nf4")
    matrix: tuple[int, int] = struct.field(pytree_node=False, default=(0, 0))  # in, out

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dequantised weight."""
        return (*self.codes.shape[:-3], *self.matrix)

    @property
    def ndim(self) -> int:
        """Number of dimensions of the weight."""
        return len(self.shape)

    @property
    def sharding(self) -> Any:
        """Sharding of the codes."""
        return self.codes.sharding

    def astype(self, dtype: Any) -> jax.Array:  # [..., in, out]
        """Returns the dequantised weight, computed in float32 and cast to `dtype`."""
        return dequantize(self, dtype)

    def __getitem__(self, layer: Any) -> "Quantized":
        """Returns one layer, or a slice of the layers, of a stacked weight."""
        return jax.tree.map(operator.itemgetter(layer), self)


def is_quantized(node: Any) -> bool:
    """Returns whether a node is a quantised weight, for use as `is_leaf` over trees of weights."""
    return isinstance(node, Quantized)


def by_path(weights: Mapping) -> dict[str, Any]:
    """Returns the weights of a tree by slash path; a quantised weight counts as one leaf."""
    return tree.flatten(weights, is_leaf=is_quantized)


def same(one: Quantized, other: Quantized) -> bool:
    """Returns whether two quantised weights have the same kind, shape, codes and scales."""
    if jax.tree.structure(one) != jax.tree.structure(other):
        return False
    return all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(other)))


def kinds(paths: Iterable[str], given: "str | tree.Rules | None") -> dict[str, str]:
    """Returns the kind of each weight that is to be quantised, by path.

    `given` is one kind for all linear maps of the layers, or rules of (pattern, kind or None) over
    the paths, of which the first match decides. Raises ValueError for a kind that is not in `MADE`
    or a path that is no linear map of a layer.
    """
    paths = list(paths)
    if given is None:
        return {}
    rules = [(LINEAR, given), (r".*", None)] if isinstance(given, str) else given
    rules = [(modules.pattern(name, modules.WEIGHT), kind) for name, kind in rules]
    found = tree.match(rules, paths, unused="allow" if isinstance(given, str) else "error")
    for path, kind in found.items():
        if kind is not None and kind not in MADE:
            raise UserError(f"quant {kind!r}: expected one of {', '.join(MADE)}")
        if kind is not None and not re.fullmatch(LINEAR, path):
            raise UserError(f"quant: cannot quantise {path}: not a linear map of a layer")
    return {path: kind for path, kind in found.items() if kind is not None}


def abstract(shape: tuple[int, ...], kind: str) -> Quantized:  # of [..., in, out]
    """Returns the arrays of a quantised weight of this shape as `jax.ShapeDtypeStruct`s."""
    how, layers = KINDS[kind], shape[:-2]
    blocks, block, outputs = grid(shape[-2:], how.block)

    def array(dtype, *sizes):
        return jax.ShapeDtypeStruct((*layers, *sizes), dtype)

    made = Quantized(
        codes=array(how.dtype, blocks, block * how.bits // 8, outputs),
        scales=array(np.uint8 if how.double else np.float32, blocks, outputs),
        kind=kind,
        matrix=tuple(shape[-2:]),
    )
    if not how.double:
        return made
    peaks = array(np.float32, -(-blocks * outputs // block_scales.BLOCK))
    return made.replace(peaks=peaks, offset=array(np.float32))


def quantize(w: np.ndarray, kind: str) -> Quantized:  # [..., in, out]
    """Quantises a weight to NumPy arrays, a few outputs at a time on all CPU threads."""
    if kind not in MADE:
        raise UserError(f"quant {kind!r}: expected one of {', '.join(MADE)}")
    if w.ndim > 2:
        layers = [quantize(layer, kind) for layer in w]
        return jax.tree.map(lambda *arrays: np.stack(arrays), *layers)
    how = KINDS[kind]
    blocks, block, outputs = grid(w.shape, how.block)
    rows = _rows(w, block)  # [outputs, blocks * block]
    codes = np.empty((blocks, block * how.bits // 8, outputs), np.uint8)
    scales = np.empty((blocks, outputs), np.float32)
    whole = len(rows) if w.size == rows.size else len(rows) - 1

    def fill(part: slice) -> None:
        values = rows[part].astype(np.float32).reshape(-1, blocks, block)
        with np.errstate(invalid="ignore"):  # infinite scales raise below
            some, peaks = _rounded(values, how, alone=part.stop > whole)
        codes[..., part], scales[:, part] = pack(some.transpose(1, 2, 0), how.bits), peaks.T

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(fill, _parts(rows, whole)))
    if not np.isfinite(scales).all():
        raise UserError("cannot quantise a weight with infinite or NaN values")
    made = Quantized(codes.view(how.dtype), scales, kind=kind, matrix=w.shape)
    if not how.double:
        return made
    small, peaks, offset = block_scales.pack(scales.T.reshape(-1))
    return made.replace(scales=small.reshape(outputs, blocks).T, peaks=peaks, offset=offset)


def pack(codes: np.ndarray, bits: int) -> np.ndarray:  # uint8[..., block, out]
    """Returns codes as they are stored: of 4 bits, two of a block's halves in each byte."""
    if bits == 8:
        return codes
    low, high = np.split(codes, 2, axis=-2)
    return low | high << 4


def unpack(codes: jax.Array, bits: int) -> jax.Array:  # [..., block, out]
    """Returns the codes that `pack` packed, one in each element."""
    if bits == 8:
        return codes
    # With a shift that varies along an axis, a TPU's compiler stores arrays of the weight's size
    # and a GPU's dequantises several weights at once. On a CPU, concatenations do not vectorise.
    return jax.lax.platform_dependent(codes, cpu=_shifted, default=_concatenated)


@partial(jax.jit, static_argnames="dtype")
def dequantize(w: Quantized, dtype: Any = jnp.float32) -> jax.Array:  # [..., in, out]
    """Returns the weight in `dtype`, computed in float32 and, if stacked, one layer at a time."""
    if w.ndim > 2:
        return jax.lax.map(partial(dequantize, dtype=dtype), w)
    how = KINDS[w.kind]
    codes = unpack(w.codes, how.bits)
    values = look_up(codes, np.float32(how.table)) if how.table else codes.astype(jnp.float32)
    values = values if how.table else values - how.zero
    values = (values * plain_scales(w)[:, None]).astype(dtype)
    inputs, outputs = w.matrix
    if values.size == inputs * values.shape[-1]:
        return values.reshape(inputs, outputs)
    published = values.reshape(-1, values.shape[-1]).T.reshape(-1)
    return published[: inputs * outputs].reshape(outputs, inputs).T


def plain_scales(w: Quantized) -> jax.Array:  # float32[..., blocks, out]
    """Returns the scales of a weight's blocks, dequantised if they are quantised."""
    if w.peaks is None:
        return w.scales
    return block_scales.unpack(w.scales, w.peaks, w.offset, look_up)


def dot(x: jax.Array, w: Any, output: Any = None) -> jax.Array:  # [n, in], [in, out] -> [n, out]
    """Returns x @ w, accumulated in dtype `output` (by default `x.dtype`); `w` may be quantised.

    A quantised weight is dequantised again in the backward pass, so that the dequantised copy does
    not stay in memory.
    """

    def product(x: jax.Array, w: Any) -> jax.Array:
        return products.einsum("ni,io->no", x, w.astype(x.dtype), output)

    return jax.checkpoint(product)(x, w) if isinstance(w, Quantized) else product(x, w)


def specs(w: Quantized, spec: PartitionSpec, fitted: Callable) -> Quantized:
    """Returns the PartitionSpec of each array of `w`, given that of the unquantised weight.

    `fitted` takes a spec and a shape, and drops the mesh axes that do not divide their dimension.
    """
    *layers, inside, outside = (*spec, *(None,) * (w.ndim - len(spec)))
    of_blocks = PartitionSpec(*layers, inside, outside)
    scales = fitted(of_blocks, w.scales.shape)
    # Where the number of blocks is not divisible by the mesh axis, the block length may be.
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
    """Returns the table entry of each code; the table's length must be a power of two."""
    # A TPU looks up a table one element at a time; halving the table by each bit of the code is
    # about a hundred times faster there. On a CPU those selections are not fused and fill memory.
    ways = {"tpu": partial(_choose, tuple(table)), "default": partial(_read, table)}
    return jax.lax.platform_dependent(codes.astype(jnp.uint8), **ways)


def nbytes(shape: tuple[int, ...], kind: str) -> int:
    """Returns the bytes that a weight of this shape takes when quantised."""
    arrays = jax.tree.leaves(abstract(shape, kind))
    return sum(math.prod(array.shape) * array.dtype.itemsize for array in arrays)


def grid(matrix: tuple[int, int], block: int | None) -> tuple[int, int, int]:
    """Returns (blocks, block, out), the shape of the codes of a matrix [in, out].

    `block` is a block's length; None means all inputs. If it does not divide the inputs, all blocks
    are side by side, as the module's docstring describes: (1, block, number of blocks).
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
    """Yields slices of rows of about `CHUNK` values each; a last row with padding comes alone."""
    step = max(1, CHUNK // rows.shape[1])
    yield from (slice(start, min(start + step, whole)) for start in range(0, whole, step))
    if whole < len(rows):
        yield slice(whole, len(rows))


def _rounded(values: np.ndarray, how: Kind, alone: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns codes uint8[n, blocks, block] and scales float32[n, blocks].

    `values` have the shape of the codes; `alone` means that they are one block with padding.
    """
    peaks = np.abs(values).max(axis=-1)
    if how.table is None:
        most = np.float32(2 ** (how.bits - 1) - 1)
        peaks = np.maximum(peaks, np.float32(SMALLEST) * most)
        codes = np.rint(values * (most / peaks)[..., None]).astype(np.int8) + np.int8(how.zero)
        return codes.view(np.uint8), peaks / most
    divisors = np.maximum(peaks, np.float32(SMALLEST))
    # bitsandbytes divides by the scale in an incomplete block, else it multiplies by 1 / scale.
    shares = values / divisors[..., None] if alone else values * (1 / divisors)[..., None]
    table = np.float32(how.table)
    codes = np.zeros(values.shape, np.uint8)
    for middle in (table[1:] + table[:-1]) / 2:
        codes += shares > middle
    return codes, divisors if alone else peaks


def _concatenated(codes: jax.Array) -> jax.Array:  # [..., n, out] -> [..., 2n, out]
    return jnp.concatenate([codes & np.uint8(15), codes >> np.uint8(4)], axis=-2)


def _shifted(codes: jax.Array) -> jax.Array:  # [..., n, out] -> [..., 2n, out]
    halves = codes[..., None, :, :] >> np.uint8([0, 4])[:, None, None] & np.uint8(15)
    return halves.reshape(*codes.shape[:-2], -1, codes.shape[-1])


# Transformations visit every operation in the branches of `platform_dependent`, and go into every
# `jit` there, as `jnp.where` is one. As one program of plain selections, a table costs them little.
@partial(jax.jit, static_argnums=0)
def _choose(table: tuple[np.float32, ...], codes: jax.Array) -> jax.Array:
    entries = [jax.lax.full_like(codes, entry, np.float32) for entry in table]
    for bit in range(len(table).bit_length() - 1):
        odd = (codes & (1 << bit)) != 0
        pairs = zip(entries[1::2], entries[::2], strict=True)
        entries = [jax.lax.select(odd, *pair) for pair in pairs]
    return entries[0]


def _read(table: np.ndarray, codes: jax.Array) -> jax.Array:
    return jnp.asarray(table).at[codes].get(mode="promise_in_bounds")
