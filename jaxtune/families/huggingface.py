"""Parsing of what the `config.json` files of Hugging Face's text models have in common."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtune.display.escapes import cut, shown
from jaxtune.families.names import TRANSPOSED, Name, Table, linear
from jaxtune.families.ranges import (
    ConfigJson,
    FamilyError,
    flag,
    number,
    numbers,
    optional,
    section,
    whole,
)
from jaxtune.models import rope
from jaxtune.models.decoder import Decoder, DecoderConfig, LayerKind
from jaxtune.models.paligemma import Model, PaliGemma, PicturesConfig


@dataclass(frozen=True)
class Family:
    """Configs and tensor names of the models of one `model_type`."""

    model_type: str
    title: str  # the published models that it covers
    decoder: Callable[[ConfigJson], DecoderConfig]
    tables: tuple[Table, ...]  # all in use: first what we write, last transformers' module names
    other: tuple[str, ...] = (r".*\.rotary_emb\.inv_freq",)  # known tensors, not ours
    pictures: Callable[[ConfigJson], PicturesConfig] | None = None  # of vision-language models

    def model(self, config: ConfigJson) -> Model:
        """Returns the model that a `config.json` describes."""
        if self.pictures is None:
            return Decoder(self.decoder(config))
        return PaliGemma(self.decoder(config), self.pictures(config))


ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}

ENDS: Table = (
    Name("model.embed_tokens.weight", ("embed/w",)),
    Name("model.norm.weight", ("norm/scale",)),
    Name("lm_head.weight", ("head/w",), TRANSPOSED),
)
ATTENTION: Table = (
    *linear("model.layers.{layer}.self_attn.q_proj", "layers/attn/q"),
    *linear("model.layers.{layer}.self_attn.k_proj", "layers/attn/k"),
    *linear("model.layers.{layer}.self_attn.v_proj", "layers/attn/v"),
    *linear("model.layers.{layer}.self_attn.o_proj", "layers/attn/o"),
    Name("model.layers.{layer}.self_attn.q_norm.weight", ("layers/attn/q_norm/scale",)),
    Name("model.layers.{layer}.self_attn.k_norm.weight", ("layers/attn/k_norm/scale",)),
)
MLP: Table = (
    *linear("model.layers.{layer}.mlp.gate_proj", "layers/mlp/gate"),
    *linear("model.layers.{layer}.mlp.up_proj", "layers/mlp/up"),
    *linear("model.layers.{layer}.mlp.down_proj", "layers/mlp/down"),
)
PRE_NORMS: Table = (
    Name("model.layers.{layer}.input_layernorm.weight", ("layers/attn_norm/scale",)),
    Name("model.layers.{layer}.post_attention_layernorm.weight", ("layers/mlp_norm/scale",)),
)
# In models that also normalise each branch's output, `post_attention_layernorm` is such a norm.
SANDWICH_NORMS: Table = (
    Name("model.layers.{layer}.input_layernorm.weight", ("layers/attn_norm/scale",)),
    Name("model.layers.{layer}.post_attention_layernorm.weight", ("layers/attn_post_norm/scale",)),
    Name("model.layers.{layer}.pre_feedforward_layernorm.weight", ("layers/mlp_norm/scale",)),
    Name("model.layers.{layer}.post_feedforward_layernorm.weight", ("layers/mlp_post_norm/scale",)),
)
LLAMA_NAMES: Table = (*ENDS, *ATTENTION, *MLP, *PRE_NORMS)


def sizes(config: ConfigJson) -> dict[str, Any]:
    """Returns the `DecoderConfig` fields whose keys are the same in every family."""
    heads = whole(config, "num_attention_heads")
    kv_heads = whole(config, "num_key_value_heads", heads)
    if heads % kv_heads:
        raise FamilyError(
            f"num_attention_heads is {heads}; expected a multiple of num_key_value_heads, "
            f"{kv_heads}"
        )
    return dict(
        vocabulary=whole(config, "vocab_size"),
        width=whole(config, "hidden_size"),
        hidden=whole(config, "intermediate_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size(config),
        context=whole(config, "max_position_embeddings"),
        query_scale=head_size(config) ** -0.5,
        tied=flag(config, "tie_word_embeddings"),
        norm_epsilon=number(config, "rms_norm_eps"),
    )


def head_size(config: ConfigJson) -> int:
    """Returns the size of a head: `head_dim`, or else the width divided by the number of heads."""
    width, heads = whole(config, "hidden_size"), whole(config, "num_attention_heads")
    if config.get("head_dim") is None and width % heads:
        raise FamilyError(
            f"hidden_size is {width:,}; expected a multiple of num_attention_heads, {heads:,}, or "
            "a head_dim"
        )
    return whole(config, "head_dim", width // heads)


def activation(name: str) -> str:
    """Returns our name of one of Hugging Face's activations."""
    if not isinstance(name, str) or name not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise FamilyError(f"activation {shown(name)} is not supported; expected one of {known}")
    return ACTIVATIONS[name]


def layers(config: ConfigJson, windows: list[int | None], ropes: list[rope.Rope]):
    """Returns one `LayerKind` per layer; raises `FamilyError` if `windows` has another length."""
    count = whole(config, "num_hidden_layers")
    if len(windows) != count:
        raise FamilyError(f"layer_types has {len(windows)} entries for {count} layers")
    return tuple(LayerKind(each, window) for each, window in zip(ropes, windows, strict=True))


def uniform_layers(config: ConfigJson, window: int | None) -> tuple[LayerKind, ...]:
    """Returns the kinds of layers that all have the same window and rotary frequencies."""
    count = whole(config, "num_hidden_layers")
    return layers(config, [window] * count, [rotary(config)] * count)


def listed_windows(config: ConfigJson, default: list[str]) -> list[int | None]:
    """Returns each layer's window, by `layer_types` or, in files without it, by `default`."""
    types = config.get("layer_types") or default
    if not isinstance(types, list):
        raise FamilyError(f"layer_types is {shown(types)}; expected a list")
    known = {
        "full_attention": None,
        "sliding_attention": optional(whole, config, "sliding_window"),
    }
    unknown = [each for each in types if not isinstance(each, str) or each not in known]
    if unknown:
        raise FamilyError(
            f"layer_types has unknown entries ({cut(str(unknown[0]))}); expected {', '.join(known)}"
        )
    return [known[each] for each in types]


def rope_parameters(config: ConfigJson) -> ConfigJson:
    """Returns a config's `rope_scaling` (the older key) or else its `rope_parameters`."""
    key = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    return section(config, key, {})


def rotary(config: ConfigJson, given: ConfigJson | None = None) -> rope.Rope:
    """Returns the rotary frequencies of a config, or of the entry `given` of its rope parameters.

    Older files have `rope_theta` and `rope_scaling`; newer ones `rope_parameters`.
    """
    given = rope_parameters(config) if given is None else given
    scheme = given.get("rope_type") or given.get("type") or "default"
    if not isinstance(scheme, str) or scheme not in SCHEMES:
        known = ", ".join(SCHEMES)
        raise FamilyError(f"rope type {shown(scheme)} is not supported; expected one of {known}")
    merged = {"rope_theta": 10_000.0, "partial_rotary_factor": 1.0, **config}
    merged |= {key: value for key, value in given.items() if value is not None}
    part = head_size(config) * number(merged, "partial_rotary_factor")
    if not 2 <= part <= head_size(config) or int(part) % 2:
        raise FamilyError(
            f"{part:g} of the {head_size(config)} features of a head are rotated; "
            "expected an even number of at least 2"
        )
    try:
        return SCHEMES[scheme](number(merged, "rope_theta"), int(part), given, config)
    except KeyError as missing:
        found = shown(dict(given))
        raise FamilyError(f"rope type {scheme!r} needs {missing}; found {found}") from None
    except (ArithmeticError, ValueError) as problem:
        found = shown(dict(given))
        raise FamilyError(f"rope type {scheme!r}: {problem}; found {found}") from None


def _default(theta, dim, given, config):
    return rope.default(theta, dim)


def _linear(theta, dim, given, config):
    return rope.linear(theta, dim, factor=_factor(given, config))


def _llama3(theta, dim, given, config):
    keys = ("factor", "low_freq_factor", "high_freq_factor")
    factors = {key: number({key: given[key]}, key) for key in keys}
    low, high = factors["low_freq_factor"], factors["high_freq_factor"]
    if low >= high:
        raise FamilyError(
            f"low_freq_factor is {low:g}; expected less than high_freq_factor, {high:g}"
        )
    return rope.llama3(theta, dim, original=_original(given, config), **factors)


def _yarn(theta, dim, given, config):
    original = _original(given, config)
    keys = ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim")
    options = {key: number(given, key) for key in keys if given.get(key) is not None}
    if given.get("truncate") is not None:
        options["truncate"] = flag(given, "truncate")
    factor = _factor(given, config, original)
    return rope.yarn(theta, dim, factor=factor, original=original, **options)


def _longrope(theta, dim, given, config):
    original = _original(given, config)
    return rope.longrope(
        theta,
        dim,
        short_factor=numbers(given, "short_factor"),
        long_factor=numbers(given, "long_factor"),
        factor=_factor(given, config, original),
        original=original,
        attention_factor=optional(number, given, "attention_factor"),
    )


def _factor(given: ConfigJson, config: ConfigJson, original: int | None = None) -> float:
    """Returns the factor of the context's extension: `factor`, or else context / `original`."""
    if given.get("factor") is None and original:
        return whole(config, "max_position_embeddings") / original
    return number({"factor": given["factor"]}, "factor")


def _original(given: ConfigJson, config: ConfigJson) -> int:
    """Returns the context length before scaling.

    As in transformers, a value at the top level of the config overrides that of the rope.
    """
    key = "original_max_position_embeddings"
    return whole(config, key, whole(given, key, whole(config, "max_position_embeddings")))


SCHEMES = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,  # the name in Phi's first long-context checkpoints
}
