"""Sampling filters on logits: temperature, top-k, top-p, min-p and repetition penalty."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxtune.display.errors import UserError


@struct.dataclass
class Sampling:
    """Sampling parameters; None disables one, and without a temperature decoding is greedy.

    Values are arrays, so that a new value does not recompile; enabling or disabling one does.
    """

    temperature: Any = None  # above 0
    top_k: Any = None  # keeps the k likeliest tokens
    top_p: Any = None  # keeps the fewest likeliest tokens whose probabilities sum to at least this
    min_p: Any = None  # keeps tokens of at least this fraction of the highest probability
    repetition: Any = None  # penalty on tokens of the prompt and the answer; 1 changes nothing

    @classmethod
    def of(cls, **given: float | None) -> "Sampling":
        """Returns validated parameters as float32 scalars; a temperature of 0 becomes None."""
        limits = {
            "temperature": (0, np.inf),
            "top_k": (1, np.inf),
            "top_p": (0, 1),
            "min_p": (0, 1),
            "repetition": (0, np.inf),
        }
        for name, value in given.items():
            low, high = limits[name]
            if value is not None and not (low <= value <= high and value == value):
                raise UserError(f"{name} {value!r}: expected a number from {low} to {high}")
        if not given.get("temperature"):
            unused = [name for name in ("top_k", "top_p", "min_p") if given.get(name) is not None]
            if unused:
                raise UserError(
                    f"{', '.join(unused)} without a temperature: decoding is greedy without one"
                )
            given["temperature"] = None
        return cls(**{name: None if v is None else np.float32(v) for name, v in given.items()})


def filtered(
    logits: jax.Array,  # float32[B, V]
    sampling: Sampling,
    seen: jax.Array | None,  # bool[B, V]
) -> jax.Array:  # float32[B, V]
    """Returns the logits to sample from: penalised, divided by the temperature, and filtered.

    The repetition penalty applies to the tokens in `seen`. Tokens that top-k, top-p or min-p
    exclude get -inf; without a temperature these filters are not applied.
    """
    if sampling.repetition is not None:
        less = jnp.where(logits > 0, logits / sampling.repetition, logits * sampling.repetition)
        logits = jnp.where(seen, less, logits)
    if sampling.temperature is None:
        return logits
    logits = logits / sampling.temperature
    if sampling.top_k is not None or sampling.top_p is not None:
        logits = jnp.where(logits >= _lowest(logits, sampling), logits, -jnp.inf)
    if sampling.min_p is not None:
        least = logits.max(-1, keepdims=True) + jnp.log(sampling.min_p)
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    return logits


def _lowest(logits: jax.Array, sampling: Sampling) -> jax.Array:  # float32[B, 1]
    """Returns the lowest logit that remains after top-k and then top-p."""
    falling = jnp.sort(logits, axis=-1, descending=True)
    if sampling.top_k is not None:
        places = jnp.arange(logits.shape[-1])
        falling = jnp.where(places < sampling.top_k, falling, -jnp.inf)
    kept = jnp.isfinite(falling)
    if sampling.top_p is not None:
        probabilities = jax.nn.softmax(falling, axis=-1)
        # A token is kept if the likelier ones sum to less than top_p; the first always is.
        above = jnp.cumsum(probabilities, axis=-1) - probabilities
        kept &= (above < sampling.top_p) | (jnp.arange(logits.shape[-1]) == 0)
    return jnp.min(jnp.where(kept, falling, jnp.inf), axis=-1, keepdims=True)
