"""Qwen 2.5 and Qwen 3 (dense)."""

from jaxtune.families.huggingface import (
    LLAMA_NAMES,
    Family,
    activation,
    layers,
    listed_windows,
    rotary,
    sizes,
)
from jaxtune.families.ranges import ConfigJson, flag, whole
from jaxtune.models.decoder import DecoderConfig

DEFAULTS = dict(
    vocab_size=151_936,
    hidden_size=4096,
    intermediate_size=22_016,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    hidden_act="silu",
    max_position_embeddings=32_768,
    rms_norm_eps=1e-6,
    tie_word_embeddings=False,
    use_sliding_window=False,
    sliding_window=4096,
    max_window_layers=28,
    attention_bias=False,
)


def qwen2(config: ConfigJson) -> DecoderConfig:
    """Returns the decoder that a Qwen 2 or 2.5 `config.json` describes."""
    config = {**DEFAULTS, **config}
    return DecoderConfig(**_shared(config), qkv_bias=True)


def qwen3(config: ConfigJson) -> DecoderConfig:
    """Returns the decoder that a Qwen 3 `config.json` describes."""
    config = {**DEFAULTS, "head_dim": 128, **config}
    bias = flag(config, "attention_bias")
    return DecoderConfig(**_shared(config), qk_norm=True, qkv_bias=bias, out_bias=bias)


def _shared(config: ConfigJson) -> dict:
    count, first = whole(config, "num_hidden_layers"), whole(config, "max_window_layers")
    if not flag(config, "use_sliding_window"):
        config = {**config, "sliding_window": None}
    pattern = ["full_attention" if i < first else "sliding_attention" for i in range(count)]
    return dict(
        **sizes(config),
        layers=layers(config, listed_windows(config, pattern), [rotary(config)] * count),
        activation=activation(config["hidden_act"]),
    )


FAMILIES = (
    Family("qwen2", "Qwen 2, 2.5", qwen2, (LLAMA_NAMES,)),
    Family("qwen3", "Qwen 3", qwen3, (LLAMA_NAMES,)),
)
