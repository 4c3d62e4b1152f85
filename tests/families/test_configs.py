"""`config.json` as the makers published it: sizes, windows and ropes, and what is refused."""

import json
import math

import pytest
import transformers

from jaxtune import families
from jaxtune.checkpoint.load import leaf_shapes
from jaxtune.families import FamilyError
from jaxtune.models.decoder import Decoder

LLAMA3_SCALING = dict(
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8192,
    rope_type="llama3",
)


def llama(width, hidden, layers, heads, head_dim, tied, factor=None) -> dict:
    scaling = LLAMA3_SCALING | {"factor": factor} if factor else None
    return dict(
        model_type="llama",
        vocab_size=128_256,
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=head_dim,
        max_position_embeddings=131_072 if factor else 8192,
        rms_norm_eps=1e-5,
        rope_theta=500_000.0,
        rope_scaling=scaling,
        tie_word_embeddings=tied,
    )


def qwen(model_type, width, hidden, layers, heads, kv, tied, **more) -> dict:
    return dict(
        model_type=model_type,
        vocab_size=151_936,
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        rope_theta=1_000_000.0,
        sliding_window=32_768,
        max_window_layers=layers,
        use_sliding_window=False,
        tie_word_embeddings=tied,
        **more,
    )


PHI = dict(model_type="phi3", hidden_size=3072, intermediate_size=8192, num_attention_heads=32)
# Parameters as the makers state them, and `config.json` as far as it bears on the model.
PUBLISHED = {
    "gemma-2b": (
        2_506_172_416,
        dict(
            model_type="gemma",
            hidden_act="gelu",
            hidden_size=2048,
            intermediate_size=16_384,
            num_attention_heads=8,
            num_hidden_layers=18,
            num_key_value_heads=1,
        ),
    ),
    "gemma-7b": (8_537_680_896, dict(model_type="gemma")),
    "gemma-2-2b": (2_614_341_888, dict(model_type="gemma2", query_pre_attn_scalar=256)),
    "gemma-2-9b": (
        9_241_705_984,
        dict(
            model_type="gemma2",
            hidden_size=3584,
            intermediate_size=14_336,
            num_hidden_layers=42,
            num_attention_heads=16,
            num_key_value_heads=8,
        ),
    ),
    "gemma-3-270m": (
        268_098_176,
        dict(
            model_type="gemma3_text",
            vocab_size=262_144,
            hidden_size=640,
            intermediate_size=2048,
            num_hidden_layers=18,
            num_attention_heads=4,
            num_key_value_heads=1,
            sliding_window=512,
            max_position_embeddings=32_768,
            rope_theta=1_000_000.0,
            rope_local_base_freq=10_000.0,
        ),
    ),
    "gemma-3-1b": (
        999_885_952,
        dict(
            model_type="gemma3_text",
            vocab_size=262_144,
            hidden_size=1152,
            intermediate_size=6912,
            num_hidden_layers=26,
            num_attention_heads=4,
            num_key_value_heads=1,
            sliding_window=512,
            sliding_window_pattern=6,
            max_position_embeddings=32_768,
        ),
    ),
    # The text part of 4B: most of its sizes are left to the reader's defaults.
    "gemma-3-4b": (
        3_880_263_168,
        dict(
            model_type="gemma3",
            text_config=dict(
                model_type="gemma3_text",
                hidden_size=2560,
                intermediate_size=10_240,
                num_hidden_layers=34,
                rope_scaling=dict(factor=8.0, rope_type="linear"),
                sliding_window=1024,
            ),
        ),
    ),
    "Llama-3-8B": (8_030_261_248, llama(4096, 14_336, 32, 32, None, False)),
    "Llama-3.1-8B": (8_030_261_248, llama(4096, 14_336, 32, 32, None, False, 8.0)),
    "Llama-3.2-1B": (1_235_814_400, llama(2048, 8192, 16, 32, 64, True, 32.0)),
    "Llama-3.2-3B": (3_212_749_824, llama(3072, 8192, 28, 24, 128, True, 32.0)),
    "Qwen2.5-0.5B": (494_032_768, qwen("qwen2", 896, 4864, 24, 14, 2, True)),
    "Qwen2.5-1.5B": (1_543_714_304, qwen("qwen2", 1536, 8960, 28, 12, 2, True)),
    "Qwen3-0.6B": (596_049_920, qwen("qwen3", 1024, 3072, 28, 16, 8, True, head_dim=128)),
    "Phi-3-mini-4k": (3_821_079_552, PHI | dict(sliding_window=2047, rope_scaling=None)),
    "Phi-3-mini-128k": (
        3_821_079_552,
        PHI
        | dict(
            sliding_window=262_144,
            max_position_embeddings=131_072,
            original_max_position_embeddings=4096,
            rope_scaling=dict(type="longrope", short_factor=[1.05] * 48, long_factor=[9.5] * 48),
        ),
    ),
    "Phi-4-mini": (
        3_836_021_760,
        PHI
        | dict(
            vocab_size=200_064,
            num_attention_heads=24,
            num_key_value_heads=8,
            partial_rotary_factor=0.75,
            max_position_embeddings=131_072,
            original_max_position_embeddings=4096,
            tie_word_embeddings=True,
            rope_scaling=dict(type="longrope", short_factor=[1.0] * 48, long_factor=[7.0] * 48),
        ),
    ),
    "Mistral-7B-v0.1": (
        7_241_732_096,
        dict(model_type="mistral", sliding_window=4096, max_position_embeddings=32_768),
    ),
    "Mistral-7B-v0.3": (
        7_248_023_552,
        dict(model_type="mistral", vocab_size=32_768, sliding_window=None, rope_theta=1e6),
    ),
}


def described(config: dict):
    return families.find(config).decoder(config)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_makers(name):
    parameters, config = PUBLISHED[name]
    shapes = leaf_shapes(Decoder(described(config)))
    assert sum(math.prod(shape) for shape in shapes.values()) == parameters


@pytest.mark.parametrize("name", PUBLISHED)
def test_older_and_newer_spelling_read_alike(name):
    """transformers rewrites a published file in its newer spelling; both mean one model."""
    _, config = PUBLISHED[name]
    newer = transformers.AutoConfig.for_model(**json.loads(json.dumps(config))).to_dict()
    assert "rope_scaling" not in newer
    assert described(newer) == described(config)


def test_an_older_spelling_beside_a_newer_one_wins(tmp_path):
    """As in transformers: people add rope_scaling to files that have rope_parameters."""
    scaling = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32_768)
    newer = dict(rope_parameters=dict(rope_type="default", rope_theta=1e6), rope_scaling=scaling)
    config = PUBLISHED["Qwen2.5-0.5B"][1] | newer
    assert described(config).layers[0].rope.scheme == "yarn ×4 from 32,768"
    tower = PUBLISHED["gemma-3-1b"][1] | dict(
        rope_parameters=dict(full_attention=dict(rope_type="default", rope_theta=5e5)),
        rope_scaling=dict(rope_type="linear", factor=8.0),
    )
    rope = described(tower).layers[5].rope
    assert (rope.scheme, rope.theta) == ("linear ×8", 5e5)


def test_gemma_1_has_the_activation_it_names():
    config = PUBLISHED["gemma-2b"][1]
    assert described(config).activation == "gelu_tanh"  # it says gelu, and means this
    assert described(config | dict(hidden_act="silu")).activation == "silu"


def test_gemma_3_windows_and_ropes():
    layers = described(PUBLISHED["gemma-3-4b"][1]).layers
    assert [layer.window for layer in layers[:7]] == [1024] * 5 + [None, 1024]
    local, everywhere = layers[0].rope, layers[5].rope
    assert local.short[1] == pytest.approx(10_000 ** (-2 / 256))
    assert everywhere.short[0] == 1 / 8
    assert everywhere.short[1] == pytest.approx(1_000_000 ** (-2 / 256) / 8)


def test_phi_4_mini_rotates_part_of_a_head():
    rope = described(PUBLISHED["Phi-4-mini"][1]).layers[0].rope
    assert len(rope.short) == len(rope.long) == 48
    assert rope.switch == 4096
    assert rope.scale == pytest.approx(math.sqrt(1 + math.log(32) / math.log(4096)))


def test_the_first_long_phi_files_read_as_longrope():
    config = json.loads(json.dumps(PUBLISHED["Phi-3-mini-128k"][1]))
    expected = described(config)
    for spelling in ("su", "yarn"):
        config["rope_scaling"]["type"] = spelling
        assert described(config) == expected


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(model_type="gpt2"), r"'gpt2' is not supported; supported model types:\n.*gemma "),
        (dict(model_type="lama"), r"nearest: 'llama'"),
        (dict(model_type=None), "None is not supported"),
        (
            dict(rope_scaling=dict(type="dynamic", factor=2.0)),
            "'dynamic' is not supported; expected one of",
        ),
        (dict(rope_scaling=dict(type="llama3", factor=2.0)), "needs 'low_freq_factor'; found"),
        (dict(hidden_act="relu"), "'relu' is not supported; expected one of silu"),
        (dict(rope_theta="x"), "rope_theta is 'x'; expected a number from "),
        (dict(rope_theta=-1.0), "rope_theta is -1.0; expected a number from "),
        (dict(rms_norm_eps="1e-5"), "rms_norm_eps is '1e-5'; expected a number from "),
        (dict(rms_norm_eps=None), "rms_norm_eps is None; expected a number from "),
        (dict(num_attention_heads=-8), "num_attention_heads is -8; expected an integer from 1 to "),
        (dict(num_key_value_heads=5), "num_attention_heads is 32; expected a multiple of .*, 5"),
        (dict(head_dim=63), "63 of the 63 features of a head are rotated; expected an even"),
        (
            dict(partial_rotary_factor=1.5),
            "partial_rotary_factor is 1.5; expected a number from 0.001 to 1",
        ),
        (
            dict(tie_word_embeddings="false"),
            "tie_word_embeddings is 'false'; expected true or false",
        ),
        (dict(attention_bias="no"), "attention_bias is 'no'; expected true or false"),
        (
            dict(rope_scaling=dict(type="linear", factor=0)),
            "factor is 0; expected a number from ",
        ),
        (dict(rope_scaling="linear"), "rope_scaling is 'linear'; expected an object"),
        (
            dict(model_type="mistral", sliding_window=0),
            "sliding_window is 0; expected an integer from 1 to ",
        ),
        (
            dict(model_type="mistral", sliding_window="5"),
            "sliding_window is '5'; expected an integer from 1 to ",
        ),
        (dict(model_type="qwen2", layer_types="full_attention"), "layer_types is 'full_att"),
        (
            dict(model_type="gemma2", query_pre_attn_scalar=-4),
            "scalar is -4; expected a number from ",
        ),
        (
            dict(model_type="gemma2", attn_logit_softcapping="50"),
            "softcapping is '50'; expected a number from ",
        ),
        (dict(model_type="gemma3", text_config=None), "text_config is None; expected an object"),
        (dict(model_type=["llama"]), r"model_type \['llama'\] is not supported"),
        (
            dict(num_attention_heads="many"),
            "num_attention_heads is 'many'; expected an integer from 1 to ",
        ),
        (dict(model_type="qwen2", layer_types=["full_attention"]), "1 entries for 16 layers"),
        (
            dict(model_type="qwen2", layer_types=["chunked"] * 32),
            r"has unknown entries \(chunked\); expected",
        ),
        (dict(model_type="gemma3_text", use_bidirectional_attention=True), "embedding model"),
        (
            dict(
                model_type="phi3",
                rope_scaling=dict(type="longrope", short_factor=[1.0], long_factor=[1.0]),
            ),
            "short_factor has 1 entries; expected 32 for 64 rotated features",
        ),
    ],
)
def test_what_is_not_understood_is_named(changes, says, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED["Llama-3.2-1B"][1] | changes))
    with pytest.raises(FamilyError, match=f"(?s)config.json: .*{says}"):
        families.read_config(tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "has no config.json: expected a checkpoint directory"),
        ("{'model_type'", "config.json is not valid JSON"),
        ("[]", "expected a JSON object, found list"),
        ("[" * 100_000, "is not valid JSON"),
        ("\xff", "is not valid JSON"),
    ],
)
def test_a_config_that_cannot_be_read(text, says, tmp_path):
    if text is not None:
        (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(FamilyError, match=says):
        families.read_config(tmp_path)


def test_a_config_that_is_a_directory(tmp_path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(FamilyError, match=r"config\.json cannot be read: Is a directory"):
        families.read_config(tmp_path)


def test_a_byte_order_mark_is_no_harm(tmp_path):
    text = json.dumps(PUBLISHED["Llama-3.2-1B"][1])
    (tmp_path / "config.json").write_text(text, encoding="utf-8-sig")
    assert families.read_config(tmp_path)[1].model_type == "llama"
