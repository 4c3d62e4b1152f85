"""Rotary position embeddings: frequencies of the scaling schemes, and the rotation.

An angle is a position times a frequency, so an error in a frequency's last digit is thousands of
times larger at the end of a long text. The arithmetic here is therefore in float32 and in the same
order as in transformers and in the training of the models.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune.display.errors import UserError


@dataclass(frozen=True)
class Rope:
    """Rotary frequencies: an angle is the position times a frequency.

    If there are `long` frequencies, sequences of more than `switch` tokens use them, not `short`.
    """

    theta: float
    scheme: str  # readable name
    short: tuple[float, ...]  # [R], R = half the rotated part of a head
    long: tuple[float, ...] = ()
    switch: int = 0
    scale: float = 1.0  # multiplies both cosine and sine


def default(theta: float, dim: int) -> Rope:
    """Returns the unscaled geometric series of frequencies over `dim` rotated features."""
    return Rope(theta, "default", _floats(1 / _powers(theta, dim)))


def linear(theta: float, dim: int, *, factor: float) -> Rope:
    """Returns frequencies divided by `factor` (position interpolation)."""
    return Rope(theta, f"linear ×{factor:g}", _floats(1 / _powers(theta, dim) / factor))


def llama3(
    theta: float,
    dim: int,
    *,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original: int,
) -> Rope:
    """Returns Llama 3.1 frequencies: high ones kept, low ones divided by `factor`, a ramp between.

    Args:
      theta: Base of the geometric series.
      dim: Number of rotated features.
      factor: Divisor of the low frequencies.
      low_freq_factor: Wavelengths above `original / low_freq_factor` are scaled in full.
      high_freq_factor: Wavelengths below `original / high_freq_factor` are kept.
      original: Context length before scaling, in tokens.

    Returns:
      The rope.
    """
    series = 1 / _powers(theta, dim)
    wave = 2 * math.pi / series
    keep = (original / wave - low_freq_factor) / (high_freq_factor - low_freq_factor)
    between = (1 - keep) * series / factor + keep * series
    squeezed = np.where(wave > original / low_freq_factor, series / factor, between)
    kept = np.where(wave < original / high_freq_factor, series, squeezed)
    return Rope(theta, f"llama3 ×{factor:g} from {original:,}", _floats(kept))


def yarn(
    theta: float,
    dim: int,
    *,
    factor: float,
    original: int,
    beta_fast: float = 32,
    beta_slow: float = 1,
    truncate: bool = True,
    attention_factor: float | None = None,
    mscale: float | None = None,
    mscale_all_dim: float | None = None,
) -> Rope:
    """Returns YaRN's frequencies: high ones kept, low ones divided by `factor`, a ramp between.

    Args:
      theta: Base of the geometric series.
      dim: Number of rotated features.
      factor: Divisor of the low frequencies.
      original: Context length before scaling, in tokens.
      beta_fast: Rotations over `original` tokens at which the ramp over feature index begins.
      beta_slow: Rotations over `original` tokens at which the ramp ends.
      truncate: Whether the ends of the ramp are rounded outwards to whole indices.
      attention_factor: Factor of cosine and sine; by default computed from `factor` and `mscale`.
      mscale: Weight in the numerator of the default attention factor; used with `mscale_all_dim`.
      mscale_all_dim: Weight in the denominator of the default attention factor.

    Returns:
      The rope.
    """
    low, high = (
        dim * math.log(original / (beta * 2 * math.pi)) / (2 * math.log(theta))
        for beta in (beta_fast, beta_slow)
    )
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    index = np.arange(dim // 2, dtype=np.float32)
    kept = 1 - np.clip((index - low) / (high - low or 0.001), 0, 1)
    powers = _powers(theta, dim)
    if attention_factor is None:
        given = mscale and mscale_all_dim
        attention_factor = _yarn_scale(factor, mscale if given else 1.0)
        attention_factor /= _yarn_scale(factor, mscale_all_dim) if given else 1.0
    scheme = f"yarn ×{factor:g} from {original:,}"
    short = _floats(1 / (factor * powers) * (1 - kept) + 1 / powers * kept)
    return Rope(theta, scheme, short, scale=attention_factor)


def longrope(
    theta: float,
    dim: int,
    *,
    short_factor: tuple[float, ...],
    long_factor: tuple[float, ...],
    factor: float,
    original: int,
    attention_factor: float | None = None,
) -> Rope:
    """Returns LongRoPE's frequencies, as in Phi: a divisor per frequency, in two sets.

    Args:
      theta: Base of the geometric series.
      dim: Number of rotated features.
      short_factor: Divisor of each frequency for sequences of at most `original` tokens.
      long_factor: Divisor of each frequency for longer sequences.
      factor: Extended context length over `original`, for the default attention factor.
      original: Context length before scaling, in tokens.
      attention_factor: Factor of cosine and sine; by default computed from `factor` and `original`.

    Returns:
      The rope. Raises ValueError unless there are `dim / 2` divisors in each set.
    """
    for name, values in (("short_factor", short_factor), ("long_factor", long_factor)):
        if len(values) != dim // 2:
            raise UserError(
                f"longrope: {name} has {len(values)} entries; "
                f"expected {dim // 2} for {dim} rotated features"
            )
    if attention_factor is None:
        attention_factor = math.sqrt(1 + max(math.log(factor), 0) / math.log(original))
    powers = _powers(theta, dim)
    return Rope(
        theta,
        f"longrope ×{factor:g} from {original:,}",
        short=_floats(1 / (np.asarray(short_factor, np.float32) * powers)),
        long=_floats(1 / (np.asarray(long_factor, np.float32) * powers)),
        switch=original,
        scale=attention_factor,
    )


def angles(
    rope: Rope,
    position: jax.Array,  # int32[B, T]
    length: jax.Array,  # int32[B, T], tokens in the sequence that each token belongs to
) -> tuple[jax.Array, jax.Array]:  # float32[B, T, R] each
    """Returns cosine and sine of every token's angles, times `rope.scale`."""
    frequencies = jnp.asarray(rope.short, jnp.float32)
    if rope.long:
        long = jnp.asarray(rope.long, jnp.float32)
        frequencies = jnp.where((length > rope.switch)[..., None], long, frequencies)
    turned = position.astype(jnp.float32)[..., None] * frequencies
    return jnp.cos(turned) * rope.scale, jnp.sin(turned) * rope.scale


def rotate(
    x: jax.Array,  # [B, T, N, H]
    cosine: jax.Array,  # float32[B, T, R], 2 R <= H: the features past 2 R pass through
    sine: jax.Array,
) -> jax.Array:
    """Rotates feature pairs (i, i + R) of every head in float32; returns the dtype of `x`."""
    half = cosine.shape[-1]
    first, second, rest = jnp.split(x.astype(jnp.float32), (half, 2 * half), axis=-1)
    cosine, sine = cosine[:, :, None], sine[:, :, None]
    turned = (first * cosine - second * sine, second * cosine + first * sine, rest)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def _powers(theta: float, dim: int) -> np.ndarray:  # float32[dim / 2]
    """Returns theta**(2i / dim) for each i, in float32; the power itself is rounded only once."""
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return (float(theta) ** exponents.astype(np.float64)).astype(np.float32)


def _floats(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _yarn_scale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0
