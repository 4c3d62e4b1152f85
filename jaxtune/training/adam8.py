"""Adam whose two moments are held in 8 bits a value: codes, and the peak of each block of values.

A code stands for a fraction of its block's peak, one of the 256 of bitsandbytes' dynamic maps,
which grow finer towards zero; values are rounded to the nearest. Codes have the weight's own shape
[..., in, out], so that whatever shards or donates the weight does the same with them.

A block is a run of inputs of one output, as bitsandbytes' are: published weights are [out, in]. It
is the longest, up to its 256, that 8 devices which split the inputs do not split: 256 for multiples
of 2048 inputs, 192 for 3072, 160 for 2560. Devices that share a block would have to send each other
all its values.
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

LONGEST, SHORTEST = 256, 16  # values of a block; in shorter ones, peaks would take too much
SPLIT = 8  # devices along the inputs that leave every block on one of them
SMALLEST = 4096  # values of a matrix whose moments are worth packing
# Moments of embeddings stay float32, as in transformers' trainer: beside frequent tokens, what is
# known of rare ones would be rounded to nothing. So do those of vectors.
PACKED: tree.Rules = (
    (r"(.*/)?embed/w", False),
    (r"(.*/)?(lora/.*/[ab]|w)", True),
    (r".*", False),
)


@struct.dataclass
class Moment:
    """A moment of one weight, or two trees for those of many."""

    codes: Any  # uint8[..., in, out]; without peaks, the values themselves
    peaks: Any  # float32[..., in / block, out], or None


def scale_by_adam8(b1, b2, epsilon) -> optax.GradientTransformation:
    """Adam's direction, as `optax.scale_by_adam`, with moments packed from step to step."""

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
    """Values as codes and peaks; unless `signed`, none may be below zero."""
    blocks = _blocks(values, block(values.shape[-2]))
    peaks = jnp.max(jnp.abs(blocks), axis=-2)
    scaled = blocks * (1 / jnp.maximum(peaks, jnp.finfo(jnp.float32).tiny))[..., None, :]
    return Moment(
        codebooks.nearest(scaled.reshape(values.shape), codebooks.dynamic_map(signed)), peaks
    )


def unpack(moment: Moment, *, signed: bool) -> jax.Array:  # float32[..., in, out]
    """The values that codes and peaks stand for."""
    values = codebooks.looked_up(moment.codes, codebooks.dynamic_map(signed))
    length = values.shape[-2] // moment.peaks.shape[-2]
    return (_blocks(values, length) * moment.peaks[..., None, :]).reshape(values.shape)


def block(inputs: int) -> int:
    """How many inputs share a peak."""
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
    """A leaf's direction, and its moments after it."""
    if mean.peaks is None:
        direction, mean, square = adam(gradient, mean.codes, square.codes)
        return direction, Moment(mean, None), Moment(square, None)

    def layer(number: jax.Array, leaves: tuple) -> tuple:
        gradient, mean, square = jax.tree.map(lambda leaf: leaf[number], leaves)
        wide = unpack(mean, signed=True), unpack(square, signed=False)
        direction, mean, square = adam(gradient, *wide)
        after = direction, pack(mean, signed=True), pack(square, signed=False)
        return jax.tree.map(lambda leaf, new: leaf.at[number].set(new), leaves, after)

    # Layer by layer and in place, so that moments in float32 are there for one layer at a time.
    leaves = (gradient, mean, square)
    stacked = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[-2:]), leaves)
    moved = jax.lax.fori_loop(0, len(stacked[0]), layer, stacked)
    return jax.tree.map(lambda leaf, new: new.reshape(leaf.shape), leaves, moved)


def _zero(leaf: jax.Array, chosen: bool) -> Moment:
    """A moment before the first step, on the devices that hold the leaf."""
    if not chosen or not _worth_packing(leaf.shape):
        return Moment(jnp.zeros_like(leaf, jnp.float32), None)
    codes = jnp.zeros_like(leaf, jnp.uint8)
    first = _blocks(codes, block(leaf.shape[-2])).max(axis=-2)
    return Moment(codes, jnp.zeros_like(first, jnp.float32))


# Trees of codes and of peaks, each like the weights', as rules for shardings know weights by where
# paths end.


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
