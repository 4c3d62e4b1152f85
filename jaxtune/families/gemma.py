"""Gemma 1, 2 and 3, and the text tower of Gemma 3's vision-language models."""

from jaxtune.families.huggingface import (
    ATTENTION,
    ENDS,
    LLAMA_NAMES,
    MLP,
    SANDWICH_NORMS,
    Family,
    activation,
    layers,
    listed_windows,
    rotary,
    sizes,
    uniform_layers,
)
from jaxtune.families.names import prefixed
from jaxtune.families.ranges import ConfigJson, FamilyError, flag, number, optional, section, whole
from jaxtune.models.decoder import DecoderConfig
from jaxtune.models.rope import Rope

GEMMA1 = dict(
    vocab_size=256_000,
    hidden_size=3072,
    intermediate_size=24_576,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=16,
    head_dim=256,
    hidden_act="gelu_pytorch_tanh",
    max_position_embeddings=8192,
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
    attention_bias=False,
)
GEMMA2 = {
    **GEMMA1,
    **dict(
        hidden_size=2304,
        intermediate_size=9216,
        num_hidden_layers=26,
        num_attention_heads=8,
        num_key_value_heads=4,
        hidden_activation="gelu_pytorch_tanh",
        query_pre_attn_scalar=256,
        sliding_window=4096,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
    ),
}
GEMMA3 = {
    **GEMMA2,
    **dict(
        vocab_size=262_208,
        max_position_embeddings=131_072,
        sliding_window_pattern=6,
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        rope_theta=1_000_000.0,
        rope_local_base_freq=10_000.0,
    ),
}


def gemma1(config: ConfigJson) -> DecoderConfig:
    """Returns the decoder that a Gemma 1 `config.json` describes."""
    config = {**GEMMA1, **config}
    # The first files say "gelu", but the models were trained with its tanh approximation.
    name = "gelu_pytorch_tanh" if config["hidden_act"] == "gelu" else config["hidden_act"]
    return DecoderConfig(
        **_shared(config),
        layers=uniform_layers(config, window=None),
        activation=activation(name),
    )


def gemma2(config: ConfigJson) -> DecoderConfig:
    """Returns the decoder that a Gemma 2 `config.json` describes."""
    config = {**GEMMA2, **config}
    count = whole(config, "num_hidden_layers")
    windows = listed_windows(config, _every(2, count))
    return _sandwiched(config, layers(config, windows, [rotary(config)] * count))


def gemma3(config: ConfigJson) -> DecoderConfig:
    """Returns the decoder that the `config.json` of a Gemma 3 text model describes."""
    config = {**GEMMA3, **config}
    period = whole(config, "sliding_window_pattern")
    default = _every(period, whole(config, "num_hidden_layers"))
    ropes, windows = _ropes(config), listed_windows(config, default)
    types = config.get("layer_types") or default
    kinds = layers(config, windows, [ropes[each] for each in types])
    return _sandwiched(config, kinds, qk_norm=True)


def gemma3_tower(config: ConfigJson) -> DecoderConfig:
    """Returns the text tower that the `config.json` of a Gemma 3 image model describes."""
    text = dict(section(config, "text_config"))
    # As in transformers, the outer config decides: the head belongs to the whole model.
    text["tie_word_embeddings"] = config.get("tie_word_embeddings", True)
    return gemma3(text)


def _shared(config: ConfigJson) -> dict:
    if config.get("use_bidirectional_attention"):
        raise FamilyError(
            "use_bidirectional_attention is set: this is an embedding model, and jaxtune "
            "supports only causal language models"
        )
    bias = flag(config, "attention_bias")
    shared = sizes(config)
    scale = shared["width"] ** 0.5
    return dict(**shared, norm_offset=1.0, embed_scale=scale, qkv_bias=bias, out_bias=bias)


def _sandwiched(config: ConfigJson, kinds, **switches) -> DecoderConfig:
    shared = _shared(config) | dict(query_scale=number(config, "query_pre_attn_scalar") ** -0.5)
    return DecoderConfig(
        **shared,
        **switches,
        layers=kinds,
        activation=activation(config["hidden_activation"]),
        attention_softcap=optional(number, config, "attn_logit_softcapping"),
        logit_softcap=optional(number, config, "final_logit_softcapping"),
        post_norms=True,
    )


def _ropes(config: ConfigJson) -> dict[str, Rope]:
    """Returns the rotary frequencies of each type of layer.

    Older files give only a theta for the sliding layers, and their `rope_scaling` does not apply
    to these.
    """
    nested = section(config, "rope_parameters", {})
    older = section(config, "rope_scaling", {})
    local = {**config, "rope_theta": config["rope_local_base_freq"]}
    return dict(
        full_attention=rotary(config, {**section(nested, "full_attention", {}), **older}),
        sliding_attention=rotary(local, section(nested, "sliding_attention", {})),
    )


def _every(period: int, count: int) -> list[str]:
    """Returns `layer_types` in which every `period`-th layer is full and all others slide."""
    return ["sliding_attention" if (i + 1) % period else "full_attention" for i in range(count)]


SANDWICH_NAMES = (*ENDS, *ATTENTION, *MLP, *SANDWICH_NORMS)
# The published names, and transformers' module names (which some releases wrote to disk).
TOWER_NAMES = (
    prefixed(
        SANDWICH_NAMES, {"model.": "language_model.model.", "lm_head.": "language_model.lm_head."}
    ),
    prefixed(SANDWICH_NAMES, {"model.": "model.language_model."}),
)
TOWER_OTHER = (r"(model\.)?vision_tower\..*", r"(model\.)?multi_modal_projector\..*")

FAMILIES = (
    Family("gemma", "Gemma 1", gemma1, (LLAMA_NAMES,)),
    Family("gemma2", "Gemma 2", gemma2, (SANDWICH_NAMES,)),
    Family("gemma3_text", "Gemma 3 270M, 1B", gemma3, (SANDWICH_NAMES,)),
    Family("gemma3", "Gemma 3 4B, 12B, 27B (text tower)", gemma3_tower, TOWER_NAMES, TOWER_OTHER),
)
