"""PaliGemma 1 and 2 in big_vision's `.npz` files, whose array shapes give the model's config."""

from collections.abc import Mapping
from typing import Any

from jaxtune.families.names import Name, Shape, Table
from jaxtune.families.ranges import ConfigJson, FamilyError
from jaxtune.models.decoder import DecoderConfig
from jaxtune.models.paligemma import Model
from jaxtune.models.siglip import SiglipConfig

PREFIXES = ("params/", "")  # in published files, and in those that its notebook saves
IMAGE_TOKEN = 257_152  # the first id past every published text vocabulary
STOPS = (1,)  # the end token of their tokenizer
# `query_pre_attn_scalar` by (width, layers), where it is not the head size: that of Gemma 2 27B.
SCALED_BY = {(4608, 46): 144}
TABLE = "llm/embedder/input_embedding"
LAYERS = "llm/layers/"
BLOCK = "img/Transformer/encoderblock/"
ATTENTION = BLOCK + "MultiHeadDotProductAttention_0/"


def config(shapes: Mapping[str, Shape]) -> ConfigJson:
    """Returns the `config.json` that transformers would write for arrays of these shapes."""
    for prefix in PREFIXES:
        if prefix + TABLE in shapes:
            found = {name.removeprefix(prefix): shape for name, shape in shapes.items()}
            try:
                return _config(found)
            except KeyError as missing:
                raise FamilyError(f"the array {prefix}{missing.args[0]} is missing") from None
            except (ValueError, IndexError, TypeError) as problem:
                raise FamilyError(f"an array has the wrong number of axes ({problem})") from None
    raise FamilyError(
        f"the array {PREFIXES[0]}{TABLE} is missing: expected a PaliGemma checkpoint of big_vision"
    )


def _config(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    vocabulary, width = shapes[TABLE]
    return dict(
        architectures=["PaliGemmaForConditionalGeneration"],
        model_type="paligemma",
        hidden_size=width,
        projection_dim=width,
        image_token_index=min(vocabulary, IMAGE_TOKEN),
        bos_token_id=2,
        eos_token_id=STOPS[0],
        pad_token_id=0,
        tie_word_embeddings=True,
        text_config=_text(shapes, vocabulary, width),
        vision_config=_vision(shapes),
    )


def _text(shapes: Mapping[str, Shape], vocabulary: int, width: int) -> dict[str, Any]:
    if LAYERS + "attn/qkv_einsum/w" in shapes:
        count, _, heads, _, size = shapes[LAYERS + "attn/qkv_einsum/w"]
        kv_heads = heads
    else:
        count, heads, _, size = shapes[LAYERS + "attn/q_einsum/w"]
        kv_heads = shapes[LAYERS + "attn/kv_einsum/w"][2]
    second = LAYERS + "post_attention_norm/scale" in shapes
    return dict(
        model_type="gemma2" if second else "gemma",
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=shapes[LAYERS + "mlp/linear"][1],
        num_hidden_layers=count,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=size,
        **(_second(count, width, size) if second else {}),
    )


def _second(count: int, width: int, size: int) -> dict[str, Any]:
    """Returns the fields of `text_config` that Gemma 2 adds.

    PaliGemma 2 was trained without sliding windows, and is fine-tuned without the cap on logits.
    """
    return dict(
        layer_types=["full_attention"] * count,
        query_pre_attn_scalar=SCALED_BY.get((width, count), size),
        attn_logit_softcapping=50.0,
        final_logit_softcapping=None,
    )


def _vision(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    patch, _, _, width = shapes["img/embedding/kernel"]
    patches = shapes["img/pos_embedding"][1]
    count, _, heads, _ = shapes[ATTENTION + "query/kernel"]
    return dict(
        model_type="siglip_vision_model",
        hidden_size=width,
        intermediate_size=shapes[BLOCK + "MlpBlock_0/Dense_0/kernel"][2],
        num_hidden_layers=count,
        num_attention_heads=heads,
        patch_size=patch,
        image_size=patch * round(patches**0.5),
        vision_use_head=False,
    )


def tables(model: Model) -> tuple[Table, ...]:
    """Returns the name tables of a PaliGemma model in big_vision's layout, one for each prefix."""
    if not model.pictures:
        raise FamilyError(
            "only PaliGemma can be written as .npz; write other models to a directory"
        )
    plain = (*_decoder(model.config), *_tower(model.pictures.tower))
    plain += (
        Name("img/head/kernel", ("projector/w",)),
        Name("img/head/bias", ("projector/b",)),
    )
    return tuple(
        tuple(Name(prefix + each.theirs, *_rest(each)) for each in plain) for prefix in PREFIXES
    )


def _rest(name: Name) -> tuple[Any, ...]:
    return name.ours, name.axes, name.view, name.stacked


def _decoder(config: DecoderConfig) -> Table:
    wide, size = config.width, config.head_size
    own = "llm/layers/"
    keys = (wide, 1, config.kv_heads, size)
    if config.kv_heads == config.heads:
        three = tuple(f"{own}attn/{each}/w" for each in "qkv")
        attention = (_stacked("attn/qkv_einsum/w", three, (1, 2, 0, 3), keys),)
    else:
        queries, pair = (f"{own}attn/q/w",), (f"{own}attn/k/w", f"{own}attn/v/w")
        attention = (
            _stacked("attn/q_einsum/w", queries, (1, 0, 2), (wide, config.heads, size)),
            _stacked("attn/kv_einsum/w", pair, (1, 2, 0, 3), keys),
        )
    out = (config.heads, size, wide)
    gates = (f"{own}mlp/gate/w", f"{own}mlp/up/w")
    norms = {
        "pre_attention_norm": "attn_norm",
        "post_attention_norm": "attn_post_norm",
        "pre_ffw_norm": "mlp_norm",
        "post_ffw_norm": "mlp_post_norm",
    }
    return (
        Name(TABLE, ("llm/embed/w",)),
        *attention,
        _stacked("attn/attn_vec_einsum/w", (f"{own}attn/o/w",), None, out),
        _stacked("mlp/gating_einsum", gates, None, (1, wide, config.hidden)),
        _stacked("mlp/linear", (f"{own}mlp/down/w",)),
        *(_stacked(f"{it}/scale", (f"{own}{ours}/scale",)) for it, ours in norms.items()),
        Name("llm/final_norm/scale", ("llm/norm/scale",)),
    )


def _stacked(
    theirs: str,
    ours: tuple[str, ...],
    axes: tuple[int, ...] | None = None,
    view: Shape | None = None,
) -> Name:
    return Name(LAYERS + theirs, ours, axes, view, stacked=True)


def _tower(config: SiglipConfig) -> Table:
    wide = config.width
    heads = (config.heads, wide // config.heads)
    own = "img/layers/"
    found = [
        Name("img/embedding/kernel", ("img/patches/w",)),
        Name("img/embedding/bias", ("img/patches/b",)),
        Name("img/pos_embedding", ("img/positions",), None, (1, config.grid**2, wide)),
        Name("img/Transformer/encoder_norm/scale", ("img/norm/scale",)),
        Name("img/Transformer/encoder_norm/bias", ("img/norm/bias",)),
        Name(ATTENTION + "out/kernel", (f"{own}attn/o/w",), None, (*heads, wide), True),
        Name(ATTENTION + "out/bias", (f"{own}attn/o/b",), stacked=True),
    ]
    for theirs, ours in dict(query="q", key="k", value="v").items():
        kernel, bias = f"{ATTENTION}{theirs}/kernel", f"{ATTENTION}{theirs}/bias"
        found += [
            Name(kernel, (f"{own}attn/{ours}/w",), None, (wide, *heads), True),
            Name(bias, (f"{own}attn/{ours}/b",), None, heads, True),
        ]
    plain = {
        "LayerNorm_0/scale": "attn_norm/scale",
        "LayerNorm_0/bias": "attn_norm/bias",
        "LayerNorm_1/scale": "mlp_norm/scale",
        "LayerNorm_1/bias": "mlp_norm/bias",
        "MlpBlock_0/Dense_0/kernel": "mlp/up/w",
        "MlpBlock_0/Dense_0/bias": "mlp/up/b",
        "MlpBlock_0/Dense_1/kernel": "mlp/down/w",
        "MlpBlock_0/Dense_1/bias": "mlp/down/b",
    }
    found += [Name(BLOCK + it, (own + ours,), stacked=True) for it, ours in plain.items()]
    return tuple(found)
