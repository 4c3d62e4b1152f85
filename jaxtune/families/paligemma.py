"""PaliGemma 1 and 2 in transformers' layout."""

from jaxtune.families import gemma
from jaxtune.families.huggingface import LLAMA_NAMES, Family, activation
from jaxtune.families.names import Name, Table, linear, prefixed
from jaxtune.families.ranges import ConfigJson, FamilyError, number, section, whole
from jaxtune.models.decoder import DecoderConfig
from jaxtune.models.paligemma import PicturesConfig
from jaxtune.models.siglip import SiglipConfig

# Defaults of `vision_config`: SigLIP So400m/14 for pictures of 224 x 224 pixels.
SO400M = dict(
    hidden_size=1152,
    intermediate_size=4304,
    num_hidden_layers=27,
    num_attention_heads=16,
    patch_size=14,
    image_size=224,
    num_channels=3,
    hidden_act="gelu_pytorch_tanh",
    layer_norm_eps=1e-6,
)
GEMMA_2B = dict(
    hidden_size=2048,
    intermediate_size=16_384,
    num_hidden_layers=18,
    num_attention_heads=8,
    num_key_value_heads=1,
    vocab_size=257_152,
)


def decoder1(config: ConfigJson) -> DecoderConfig:
    """Returns the decoder that a PaliGemma 1 `config.json` describes."""
    return gemma.gemma1({**GEMMA_2B, **_text(config)})


def decoder2(config: ConfigJson) -> DecoderConfig:
    """Returns the decoder that a PaliGemma 2 `config.json` describes."""
    return gemma.gemma2(_text(config))


def _text(config: ConfigJson) -> ConfigJson:
    text = dict(section(config, "text_config"))
    # transformers sets this for full attention over the prefix; here each batch has its own mask.
    text.pop("use_bidirectional_attention", None)
    return text | {"tie_word_embeddings": config.get("tie_word_embeddings", True)}


def pictures(config: ConfigJson) -> PicturesConfig:
    """Returns the vision tower and the image token that a PaliGemma `config.json` describes."""
    tower = siglip(section(config, "vision_config"))
    return PicturesConfig(tower, token=whole(config, "image_token_index", 257_152))


def siglip(config: ConfigJson) -> SiglipConfig:
    """Returns the SigLIP tower that a `vision_config` describes."""
    config = {**SO400M, **config}
    whole(config, "num_channels")
    if config.get("vision_use_head"):
        raise FamilyError("vision_config: vision_use_head is set; expected a tower without a head")
    width, heads = whole(config, "hidden_size"), whole(config, "num_attention_heads")
    if width % heads:
        raise FamilyError(
            f"vision_config: hidden_size is {width}; expected a multiple of the {heads} heads"
        )
    side, patch = whole(config, "image_size"), whole(config, "patch_size")
    if patch > side:
        raise FamilyError(
            f"vision_config: patch_size is {patch:,}; expected at most the image_size, {side:,}"
        )
    return SiglipConfig(
        side=side,
        patch=patch,
        width=width,
        hidden=whole(config, "intermediate_size"),
        heads=heads,
        layers=whole(config, "num_hidden_layers"),
        activation=activation(config["hidden_act"]),
        norm_epsilon=number(config, "layer_norm_eps"),
    )


def _norm(theirs: str, ours: str) -> Table:
    return (
        Name(f"{theirs}.weight", (f"{ours}/scale",)),
        Name(f"{theirs}.bias", (f"{ours}/bias",)),
    )


TOWER: Table = (
    Name("tower.embeddings.patch_embedding.weight", ("img/patches/w",), (3, 2, 0, 1)),
    Name("tower.embeddings.patch_embedding.bias", ("img/patches/b",)),
    Name("tower.embeddings.position_embedding.weight", ("img/positions",)),
    *_norm("tower.encoder.layers.{layer}.layer_norm1", "img/layers/attn_norm"),
    *_norm("tower.encoder.layers.{layer}.layer_norm2", "img/layers/mlp_norm"),
    *linear("tower.encoder.layers.{layer}.self_attn.q_proj", "img/layers/attn/q"),
    *linear("tower.encoder.layers.{layer}.self_attn.k_proj", "img/layers/attn/k"),
    *linear("tower.encoder.layers.{layer}.self_attn.v_proj", "img/layers/attn/v"),
    *linear("tower.encoder.layers.{layer}.self_attn.out_proj", "img/layers/attn/o"),
    *linear("tower.encoder.layers.{layer}.mlp.fc1", "img/layers/mlp/up"),
    *linear("tower.encoder.layers.{layer}.mlp.fc2", "img/layers/mlp/down"),
    *_norm("tower.post_layernorm", "img/norm"),
)
PROJECTOR: Table = linear("projector.linear", "projector")


# Prefixes of tensor names, by release: of the text model, its head, the tower and the projector.
RELEASES = (
    # In the published checkpoints.
    (
        "language_model.model.",
        "language_model.lm_head.",
        "vision_tower.vision_model.",
        "multi_modal_projector.",
    ),
    # As transformers 5 writes them.
    ("language_model.model.", "lm_head.", "vision_tower.", "multi_modal_projector."),
    # Names of transformers' modules, in earlier releases and now.
    (
        "model.language_model.",
        "lm_head.",
        "model.vision_tower.vision_model.",
        "model.multi_modal_projector.",
    ),
    ("model.language_model.", "lm_head.", "model.vision_tower.", "model.multi_modal_projector."),
)


def _tables(text: Table) -> tuple[Table, ...]:
    return tuple(
        (
            *prefixed(text, {"model.": model, "lm_head.": head}, "llm/"),
            *prefixed((*TOWER, *PROJECTOR), {"tower.": tower, "projector.": projector}),
        )
        for model, head, tower, projector in RELEASES
    )


FAMILIES = (
    Family("paligemma", "PaliGemma 3B", decoder1, _tables(LLAMA_NAMES), pictures=pictures),
    Family(
        "paligemma+gemma2",
        "PaliGemma 2 3B, 10B, 28B",
        decoder2,
        _tables(gemma.SANDWICH_NAMES),
        pictures=pictures,
    ),
)
