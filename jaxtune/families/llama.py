"""Llama 3, 3.1, 3.2 and 3.3 (text)."""

from jaxtune.families.huggingface import LLAMA_NAMES, Family, activation, sizes, uniform_layers
from jaxtune.families.ranges import ConfigJson, flag
from jaxtune.models.decoder import DecoderConfig

DEFAULTS = dict(
    vocab_size=32_000,
    hidden_size=4096,
    intermediate_size=11_008,
    num_hidden_layers=32,
    num_attention_heads=32,
    hidden_act="silu",
    max_position_embeddings=2048,
    rms_norm_eps=1e-6,
    tie_word_embeddings=False,
    attention_bias=False,
    mlp_bias=False,
)


def decoder(config: ConfigJson) -> DecoderConfig:
    """Returns the decoder that a Llama `config.json` describes."""
    config = {**DEFAULTS, **config}
    return DecoderConfig(
        **sizes(config),
        layers=uniform_layers(config, window=None),
        activation=activation(config["hidden_act"]),
        qkv_bias=flag(config, "attention_bias"),
        out_bias=flag(config, "attention_bias"),
        mlp_bias=flag(config, "mlp_bias"),
    )


FAMILIES = (Family("llama", "Llama 3, 3.1, 3.2, 3.3", decoder, (LLAMA_NAMES,)),)
