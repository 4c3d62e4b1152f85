"""Adam with both moments quantised to 8 bits: a code per value and a peak per block of values.

A code stands for a fraction of its block's peak, one of the 256 entries of bitsandbytes' dynamic
maps, which grow finer towards zero; values are rounded to the nearest entry. Codes have the shape
of the weight, [..., in, out], so that they are sharded and donated like the weight.

A block is a run of inputs of one output, as in bitsandbytes, where weights are stored [out, in].
Its length is the largest, up to the 256 of bitsandbytes, at which sharding the inputs over 8
devices splits no block: 256 for multiples of 2048 inputs, 192 for 3072, 160 for 2560. Devices that
share a block would have to exchange all its values.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxtune import tree
from jaxtune.quant import codebooks

LONGEST, SHORTEST = 256, 16  # values of a block; with shorter ones, peaks take too much memory
SPLIT = 8  # devices that the inputs can be sharded over without splitting a block
SMALLEST = 4096  # values of the smallest matrix whose moments are packed
# Moments of embeddings stay float32, as in transformers' trainer: in a block with frequent tokens,
# the small moments of rare tokens would be rounded to zero. Moments of vectors stay float32, too.
PACKED: tree.Rules = (
    (r"(.*/)?embed/w", False),
    (r"(.*/)?(lora/.*/[ab]|w)", True),
    (r".*", False),
)


@struct.dataclass
class Moment:
    """A moment of one weight, or of many weights as a tree of codes and a tree of peaks."""

    codes: Any  # uint8[..., in, out]; float32 values where peaks are None
    peaks: Any  # float32[..., in / block, out], or None


def scale_by_adam8(b1, b2, epsilon) -> optax.GradientTransformation:
    """Returns `optax.scale_by_adam` with moments stored in 8 bits between steps."""

    def init(params: Any) -> optax.ScaleByAdamState:
        leaves, structure = jax.tree.flatten(params)
        chosen = jax.tree.leaves(tree.select(params, PACKED, unused="allow"))
        mean, square = (_together(structure, map(_zero, leaves, chosen)) for _ in range(2))
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), mean, square)

    def update(gradients: Any, state: optax.ScaleByAdamState, params: Any = None):
        del params
        count = optax.safe_increment(state.count)
        adam = partial(_adam, b1, b2, epsilon, count)
        leaves, structure = jax.tree.flatten(gradients)
        moments = (_apart(structure, each) for each in (state.mu, state.nu))
        directions, *moments = zip(*map(partial(_moved, adam), leaves, *moments), strict=True)
        mean, square = (_together(structure, each) for each in moments)
        return structure.unflatten(directions), optax.ScaleByAdamState(count, mean, square)

    return optax.GradientTransformation(init, update)


def pack(values: jax.Array, *, signed: bool) -> Moment:  # float32[..., in, out]
    """Quantises values to codes and peaks; unless `signed`, values must not be negative."""
    blocks = _blocks(values, block(values.shape[-2]))
    peaks = jnp.max(jnp.abs(blocks), axis=-2)
    scaled = blocks * (1 / jnp.maximum(peaks, jnp.finfo(jnp.float32).tiny))[..., None, :]
    return Moment(
        codebooks.nearest(scaled.reshape(values.shape), codebooks.dynamic_map(signed)), peaks
    )


def unpack(moment: Moment, *, signed: bool) -> jax.Array:  # float32[..., in, out]
    """Returns the dequantised values of a packed moment."""
    values = codebooks.looked_up(moment.codes, codebooks.dynamic_map(signed))
    length = values.shape[-2] // moment.peaks.shape[-2]
    return (_blocks(values, length) * moment.peaks[..., None, :]).reshape(values.shape)


def block(inputs: int) -> int:
    """Returns the length of a block: the number of inputs that share a peak."""
    whole = inputs // math.gcd(inputs, SPLIT)
    return next(size for size in range(min(whole, LONGEST), 0, -1) if whole % size == 0)


def _adam(b1, b2, epsilon, count, gradient, mean, square) -> tuple[jax.Array, jax.Array, jax.Array]:
    mean = b1 * mean + (1 - b1) * gradient
    square = b2 * square + (1 - b2) * jnp.square(gradient)
    root = jnp.sqrt(square / (1 - b2**count))
    return mean / (1 - b1**count) / (root + epsilon), mean, square


def _moved(
    adam: Callable, gradient: jax.Array, mean: Moment, square: Moment
) -> tuple[jax.Array, Moment, Moment]:
    """Returns the update direction of one leaf, and its new moments."""
    if mean.peaks is None:
        direction, mean, square = adam(gradient, mean.codes, square.codes)
        return direction, Moment(mean, None), Moment(square, None)

    def layer(number: jax.Array, leaves: tuple) -> tuple:
        gradient, mean, square = jax.tree.map(lambda leaf: leaf[number], leaves)
        wide = unpack(mean, signed=True), unpack(square, signed=False)
        direction, mean, square = adam(gradient, *wide)
        after = direction, pack(mean, signed=True), pack(square, signed=False)
        return jax.tree.map(lambda leaf, new: leaf.at[number].set(new), leaves, after)

    # One layer at a time and in place, so that float32 moments exist for one layer only.
    leaves = (gradient, mean, square)
    stacked = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[-2:]), leaves)
    moved = jax.lax.fori_loop(0, len(stacked[0]), layer, stacked)
    return jax.tree.map(lambda leaf, new: new.reshape(leaf.shape), leaves, moved)


def _zero(leaf: jax.Array, chosen: bool) -> Moment:
    """Returns a leaf's moment before the first step, on the devices that hold the leaf."""
    if not chosen or not _worth_packing(leaf.shape):
        return Moment(jnp.zeros_like(leaf, jnp.float32), None)
    codes = jnp.zeros_like(leaf, jnp.uint8)
    first = _blocks(codes, block(leaf.shape[-2])).max(axis=-2)
    return Moment(codes, jnp.zeros_like(first, jnp.float32))


# The optimiser state holds one tree of codes and one of peaks, each in the structure of the
# weights, because sharding rules recognise a weight by the end of its path.


def _together(structure: Any, moments: Iterable[Moment]) -> Moment:
    pairs = [(each.codes, each.peaks) for each in moments]
    return Moment(*(structure.unflatten(each) for each in zip(*pairs, strict=True)))


def _apart(structure: Any, moment: Moment) -> Iterator[Moment]:
    return map(Moment, *map(structure.flatten_up_to, (moment.codes, moment.peaks)))


def _worth_packing(shape: tuple[int, ...]) -> bool:
    matrix = shape[-2:]
    return len(matrix) == 2 and math.prod(matrix) >= SMALLEST and block(matrix[0]) >= SHORTEST


def _blocks(values: jax.Array, length: int) -> jax.Array:  # [..., in / length, length, out]
    *layers, inputs, outputs = values.shape
    return values.reshape(*layers, inputs // length, length, outputs)
