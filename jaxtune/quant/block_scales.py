"""bitsandbytes' double quantisation: the scales of a weight's blocks, quantised to 8 bits.

The mean of the scales is subtracted, and every 256 of the differences are divided by their largest
magnitude, their peak, and stored as codes of the dynamic map. The results equal bitsandbytes' on a
CPU to the bit; the mean equals that of torch on one thread.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune.quant.codebooks import dynamic_map

BLOCK = 256  # scales that share a peak
GRID = 65535  # bitsandbytes rounds a scale to one of this many steps before it looks up the code
LANES, ROWS, LEVELS = 8, 4, 4  # torch's sum: values a vector, vectors at once, levels


def pack(scales: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # float32[n]
    """Returns codes uint8[n], peaks float32[ceil(n / 256)] and the offset float32[] of scales."""
    with np.errstate(over="ignore"):  # bitsandbytes' mean overflows to infinity, too
        offset = _mean(scales)
    blocks = -(-len(scales) // BLOCK)
    centred = np.zeros(blocks * BLOCK, np.float32)
    centred[: len(scales)] = scales - offset
    centred = centred.reshape(blocks, BLOCK)
    peaks = np.abs(centred).max(axis=1)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        codes = _nearest(centred * (np.float32(1) / peaks)[:, None])
    codes[peaks == 0] = 0
    return codes.reshape(-1)[: len(scales)], peaks, offset


def unpack(codes: jax.Array, peaks: jax.Array, offset: jax.Array, look_up) -> jax.Array:
    """Returns the scales float32[..., blocks, out] that packed scales stand for.

    Args:
      codes: uint8[..., blocks, out].
      peaks: float32[..., n], the largest magnitude of every 256 scales less the offset.
      offset: float32[...], the mean of a weight's scales.
      look_up: Returns the entry float32[...] of a table for every code.

    Returns:
      float32[..., blocks, out], rounded as bitsandbytes rounds.
    """
    *layers, blocks, outputs = codes.shape
    # Scales are packed in the order of published weights: all blocks of one output, then the next.
    spread = jnp.repeat(peaks, BLOCK, axis=-1)[..., : blocks * outputs]
    spread = spread.reshape(*layers, outputs, blocks).swapaxes(-1, -2)
    centred = look_up(codes, dynamic_map(signed=True)) * spread
    # No entry of the map is below -1, so the maximum changes nothing. It keeps the product and the
    # sum from being fused, which would round once where bitsandbytes rounds twice.
    return jnp.maximum(centred, -spread) + offset[..., None, None]


def _nearest(shares: np.ndarray) -> np.ndarray:  # float32[...] in [-1, 1] -> uint8[...]
    steps = (np.clip(shares, -1, 1) + np.float32(1)) * np.float32(GRID / 2) + np.float32(0.5)
    return _codes_of_steps()[np.nan_to_num(steps).astype(np.int32)]


def _codes_of_steps() -> np.ndarray:  # uint8[GRID + 1]
    table = dynamic_map(signed=True)
    middles = np.float32(0.5) * (table[1:] + table[:-1])
    shares = np.float32(-1) + np.float32(2) * np.arange(GRID + 1, dtype=np.float32) / GRID
    return np.searchsorted(middles, shares.astype(np.float32)).astype(np.uint8)


def _mean(values: np.ndarray) -> np.ndarray:  # float32[n] -> float32[]
    """Returns the mean, summed in the order of torch.mean so that float32 rounds alike."""
    lanes = LANES if len(values) >= LANES else 1
    whole = len(values) // lanes * lanes
    vectors = values[:whole].reshape(-1, lanes)
    even = len(vectors) // ROWS * ROWS
    sums = _cascade(vectors[:even].reshape(-1, ROWS, lanes))
    for vector in vectors[even:]:
        sums[0] += vector
    total = np.float32(0)
    for value in [*values[whole:], *_in_turn(sums)]:
        total += value
    return np.float32(total / np.float32(len(values)))


def _cascade(values: np.ndarray) -> np.ndarray:  # float32[n, ROWS, lanes] -> [ROWS, lanes]
    """Returns sums over axis 0: of runs, then of runs of these; incomplete runs are added last."""
    run = 2 ** max(4, (max(len(values), 1) - 1).bit_length() // LEVELS)
    left = []
    for level in range(LEVELS):
        whole = 0 if level == LEVELS - 1 else len(values) // run * run
        left.append(_in_turn(values[whole:]))
        values = _in_turn(values[:whole].reshape(-1, run, *values.shape[1:]).swapaxes(0, 1))
    return _in_turn(np.stack(left))


def _in_turn(values: np.ndarray) -> np.ndarray:  # [n, ...] -> [...]
    total = np.zeros(values.shape[1:], np.float32)
    for value in values:
        total = total + value
    return total
