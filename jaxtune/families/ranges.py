"""Reads values of a `config.json` by type, each within the range that published models stay in.

A size beyond its range would only be noticed when arrays of that size are made, or never.
"""

from collections.abc import Callable, Mapping
from typing import Any

from jaxtune.display.errors import UserError
from jaxtune.display.escapes import shown

ConfigJson = Mapping[str, Any]

TOKENS = 1_073_741_824  # of a context: positions are counted in 32 bits
# Smallest and largest value of every integer that is read.
WHOLE = {
    "vocab_size": (1, 4_194_304),
    "hidden_size": (1, 131_072),
    "intermediate_size": (1, 1_048_576),
    "num_hidden_layers": (1, 1000),
    "num_attention_heads": (1, 4096),
    "num_key_value_heads": (1, 4096),
    "head_dim": (1, 1024),
    "max_position_embeddings": (1, TOKENS),
    "original_max_position_embeddings": (1, TOKENS),
    "sliding_window": (1, TOKENS),
    "sliding_window_pattern": (1, 1000),
    "max_window_layers": (0, 1000),
    "image_token_index": (0, 4_194_304),
    "image_size": (1, 8192),
    "patch_size": (1, 1024),
    "num_channels": (3, 3),
}
# The same of every other number.
NUMBERS = {
    "rms_norm_eps": (1e-15, 1.0),
    "layer_norm_eps": (1e-15, 1.0),
    "rope_theta": (1.0, 1e15),
    "partial_rotary_factor": (0.001, 1.0),
    "query_pre_attn_scalar": (0.001, 1e6),
    "attn_logit_softcapping": (0.001, 1e6),
    "final_logit_softcapping": (0.001, 1e6),
    "factor": (0.001, 1e6),
    "low_freq_factor": (1e-6, 1e6),
    "high_freq_factor": (1e-6, 1e6),
    "beta_fast": (1e-6, 1e6),
    "beta_slow": (1e-6, 1e6),
    "attention_factor": (1e-6, 1e6),
    "mscale": (1e-6, 1e6),
    "mscale_all_dim": (1e-6, 1e6),
    "short_factor": (1e-6, 1e6),
    "long_factor": (1e-6, 1e6),
}


class FamilyError(UserError):
    """A `config.json` that is malformed, or describes a model that jaxtune does not support."""


def whole(config: ConfigJson, key: str, otherwise: int | None = None) -> int:
    """Returns an integer within its range; `otherwise` if the key is absent or null."""
    value = otherwise if config.get(key) is None else config[key]
    least, most = WHOLE[key]
    if type(value) is not int or not least <= value <= most:
        raise FamilyError(
            f"{key} is {shown(value)}; expected an integer from {least:,} to {most:,}"
        )
    return value


def number(config: ConfigJson, key: str) -> float:
    """Returns a finite number within its range."""
    return _within_range(config.get(key), key)


def numbers(config: ConfigJson, key: str) -> tuple[float, ...]:
    """Returns a list of numbers within the range of the key, which must be present."""
    value, (_, most) = config[key], WHOLE["head_dim"]
    if not isinstance(value, list | tuple) or len(value) > most:
        raise FamilyError(f"{key} is {shown(value)}; expected a list of at most {most:,} numbers")
    return tuple(_within_range(each, key) for each in value)


def flag(config: ConfigJson, key: str) -> bool:
    """Returns a boolean; the key must be present."""
    if type(config[key]) is not bool:
        raise FamilyError(f"{key} is {shown(config[key])}; expected true or false")
    return config[key]


def section(config: ConfigJson, key: str, otherwise: ConfigJson | None = None) -> ConfigJson:
    """Returns an object within the config; `otherwise` if the key is absent or null."""
    value = otherwise if config.get(key) is None else config[key]
    if not isinstance(value, Mapping):
        raise FamilyError(f"{key} is {shown(value)}; expected an object")
    return value


def optional(read: Callable, config: ConfigJson, key: str) -> Any:
    """Returns `read(config, key)`, or None if the key is absent or null."""
    return None if config.get(key) is None else read(config, key)


def _within_range(value: Any, key: str) -> float:
    least, most = NUMBERS[key]
    if type(value) not in (int, float) or not least <= value <= most:
        raise FamilyError(
            f"{key} is {shown(value)}; expected a number from {least:g} to {most:,.0f}"
        )
    return value
