"""Mistral 7B and Mistral Nemo."""

from jaxtune.families.huggingface import LLAMA_NAMES, Family, activation, sizes, uniform_layers
from jaxtune.families.ranges import ConfigJson, optional, whole
from jaxtune.models.decoder import DecoderConfig

DEFAULTS = dict(
    vocab_size=32_000,
    hidden_size=4096,
    intermediate_size=14_336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    hidden_act="silu",
    max_position_embeddings=131_072,
    rms_norm_eps=1e-6,
    tie_word_embeddings=False,
    sliding_window=4096,
)


def decoder(config: ConfigJson) -> DecoderConfig:
    """Returns the decoder that a Mistral `config.json` describes."""
    config = {**DEFAULTS, **config}
    return DecoderConfig(
        **sizes(config),
        layers=uniform_layers(config, optional(whole, config, "sliding_window")),
        activation=activation(config["hidden_act"]),
    )


FAMILIES = (Family("mistral", "Mistral 7B v0.1-v0.3, Nemo", decoder, (LLAMA_NAMES,)),)
