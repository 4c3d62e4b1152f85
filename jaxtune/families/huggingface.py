"""How Hugging Face writes a text model down: the idioms that its `config.json` files share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxtune.checkpoint.names import Name, Table, linear
from jaxtune.models import rope
from jaxtune.models.decoder import DecoderConfig, LayerKind

Config = Mapping[str, Any]


class ConfigError(ValueError):
    """A `config.json` that jaxtune does not understand, or does not support."""


@dataclass(frozen=True)
class Family:
    """All that jaxtune knows about one `model_type`."""

    model_type: str
    title: str  # the published models it stands for
    decoder: Callable[[Config], DecoderConfig]
    tables: tuple[Table, ...]  # one a naming that is about; the first is what we write
    other: tuple[str, ...] = (r".*\.rotary_emb\.inv_freq",)  # tensors known and not ours


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
    Name("lm_head.weight", ("head/w",), transposed=True),
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
# Where branches are normed on their way out too, `post_attention_layernorm` is such a norm.
SANDWICH_NORMS: Table = (
    Name("model.layers.{layer}.input_layernorm.weight", ("layers/attn_norm/scale",)),
    Name("model.layers.{layer}.post_attention_layernorm.weight", ("layers/attn_post_norm/scale",)),
    Name("model.layers.{layer}.pre_feedforward_layernorm.weight", ("layers/mlp_norm/scale",)),
    Name("model.layers.{layer}.post_feedforward_layernorm.weight", ("layers/mlp_post_norm/scale",)),
)
LLAMA_NAMES: Table = (*ENDS, *ATTENTION, *MLP, *PRE_NORMS)


def sizes(config: Config) -> dict[str, Any]:
    """The `DecoderConfig` fields that every family spells alike."""
    heads = whole(config, "num_attention_heads")
    width = whole(config, "hidden_size")
    size = whole(config, "head_dim", width // heads)
    return dict(
        vocabulary=whole(config, "vocab_size"),
        width=width,
        hidden=whole(config, "intermediate_size"),
        heads=heads,
        kv_heads=whole(config, "num_key_value_heads", heads),
        head_size=size,
        context=whole(config, "max_position_embeddings"),
        query_scale=size**-0.5,
        tied=config["tie_word_embeddings"],
        norm_epsilon=config["rms_norm_eps"],
    )


def whole(config: Config, key: str, otherwise: int | None = None) -> int:
    """A size; one that is absent or null is `otherwise`."""
    value = otherwise if config.get(key) is None else config[key]
    if type(value) is not int or value < 1:
        raise ConfigError(f"{key} is {value!r}; a whole number from 1 was expected")
    return value


def activation(name: str) -> str:
    """Our name for one of Hugging Face's activations."""
    if name not in ACTIVATIONS:
        raise ConfigError(f"activation {name!r} is not supported; known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def layers(config: Config, windows: list[int | None], ropes: list[rope.Rope]):
    """One `LayerKind` a layer, checked against the number of layers."""
    count = whole(config, "num_hidden_layers")
    if len(windows) != count:
        raise ConfigError(f"layer_types has {len(windows)} entries for {count} layers")
    return tuple(LayerKind(each, window) for each, window in zip(ropes, windows, strict=True))


def uniform_layers(config: Config, window: int | None) -> tuple[LayerKind, ...]:
    """Layers that are all alike."""
    count = whole(config, "num_hidden_layers")
    return layers(config, [window] * count, [rotary(config)] * count)


def listed_windows(config: Config, default: list[str]) -> list[int | None]:
    """A window a layer, from `layer_types` or, in files that lack it, from the family's pattern."""
    types = config.get("layer_types") or default
    known = {"full_attention": None, "sliding_attention": config.get("sliding_window")}
    unknown = sorted(set(types) - set(known))
    if unknown:
        raise ConfigError(f"layer_types has {', '.join(unknown)}; known: {', '.join(known)}")
    return [known[each] for each in types]


def rotary(config: Config, given: Config | None = None) -> rope.Rope:
    """The frequencies that a config, or one entry `given` of its rope parameters, asks for.

    Older files have `rope_theta` and `rope_scaling`; newer ones `rope_parameters`.
    """
    if given is None:
        given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scheme = given.get("rope_type") or given.get("type") or "default"
    if scheme not in SCHEMES:
        raise ConfigError(f"rope type {scheme!r} is not supported; known: {', '.join(SCHEMES)}")
    theta = given.get("rope_theta") or config.get("rope_theta") or 10_000.0
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    part = given.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    try:
        return SCHEMES[scheme](theta, int(size * part), given, config)
    except KeyError as missing:
        raise ConfigError(f"rope type {scheme!r} needs {missing}; found {dict(given)}") from None
    except ValueError as problem:
        raise ConfigError(str(problem)) from None


def _default(theta, dim, given, config):
    return rope.default(theta, dim)


def _linear(theta, dim, given, config):
    return rope.linear(theta, dim, factor=given["factor"])


def _llama3(theta, dim, given, config):
    keys = ("factor", "low_freq_factor", "high_freq_factor")
    return rope.llama3(theta, dim, original=_original(given, config), **{k: given[k] for k in keys})


def _yarn(theta, dim, given, config):
    original = _original(given, config)
    keys = ("beta_fast", "beta_slow", "truncate", "attention_factor", "mscale", "mscale_all_dim")
    options = {key: given[key] for key in keys if given.get(key) is not None}
    factor = given.get("factor") or config["max_position_embeddings"] / original
    return rope.yarn(theta, dim, factor=factor, original=original, **options)


def _longrope(theta, dim, given, config):
    original = _original(given, config)
    return rope.longrope(
        theta,
        dim,
        short_factor=tuple(given["short_factor"]),
        long_factor=tuple(given["long_factor"]),
        factor=given.get("factor") or config["max_position_embeddings"] / original,
        original=original,
        attention_factor=given.get("attention_factor"),
    )


def _original(given: Config, config: Config) -> int:
    """The context before scaling; a value beside the rope's own wins, as in transformers."""
    key = "original_max_position_embeddings"
    return config.get(key) or given.get(key) or config["max_position_embeddings"]


SCHEMES = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,  # what Phi's first long checkpoints call it
}
