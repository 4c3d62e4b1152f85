"""Phi-3, Phi-3.5 (mini), Phi-4 and Phi-4-mini, which store their projections fused."""

from jaxtune.families.huggingface import (
    ENDS,
    PRE_NORMS,
    Family,
    activation,
    rope_parameters,
    sizes,
    uniform_layers,
)
from jaxtune.families.names import linear
from jaxtune.families.ranges import ConfigJson, optional, whole
from jaxtune.models.decoder import DecoderConfig

DEFAULTS = dict(
    vocab_size=32_064,
    hidden_size=3072,
    intermediate_size=8192,
    num_hidden_layers=32,
    num_attention_heads=32,
    hidden_act="silu",
    max_position_embeddings=4096,
    original_max_position_embeddings=4096,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
    sliding_window=None,
)
LAYER = "model.layers.{layer}"
NAMES = (
    *ENDS,
    *PRE_NORMS,
    *linear(f"{LAYER}.self_attn.qkv_proj", *(f"layers/attn/{part}" for part in "qkv")),
    *linear(f"{LAYER}.self_attn.o_proj", "layers/attn/o"),
    *linear(f"{LAYER}.mlp.gate_up_proj", "layers/mlp/gate", "layers/mlp/up"),
    *linear(f"{LAYER}.mlp.down_proj", "layers/mlp/down"),
)


def decoder(config: ConfigJson) -> DecoderConfig:
    """Returns the decoder that a Phi-3 or Phi-4 `config.json` describes."""
    config = {**DEFAULTS, **config}
    scaling = rope_parameters(config)
    if scaling.get("type") == "yarn":
        # The first 128k checkpoints say "yarn" for the scheme that is now called longrope.
        config["rope_scaling"] = {**scaling, "type": "longrope"}
    return DecoderConfig(
        **sizes(config),
        layers=uniform_layers(config, optional(whole, config, "sliding_window")),
        activation=activation(config["hidden_act"]),
    )


FAMILIES = (Family("phi3", "Phi-3, Phi-3.5-mini, Phi-4, Phi-4-mini", decoder, (NAMES,)),)
