"""Sizes in a `config.json` beyond those of any published model are refused, by every family."""

import json
import math
import time

import pytest

from jaxtune import families
from jaxtune.checkpoint.load import read_config
from jaxtune.families import FamilyError, ranges

# What a family reads beside its defaults, so that every key below is read by some family.
TEXT = dict(
    vocab_size=2048,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    rms_norm_eps=1e-6,
    rope_theta=10_000.0,
    sliding_window=128,
)
WRONG = (0, -1, 1.5, True, "8", [8], {"a": 8}, 10**9 * 5, 10**400, math.nan, math.inf, -math.inf)
SIZES = sorted(TEXT.keys() - {"rms_norm_eps", "rope_theta", "sliding_window"})
NUMBERS = ("rms_norm_eps", "rope_theta", "partial_rotary_factor")
PLAIN = [name for name in families.SUPPORTED if "paligemma" not in name and name != "gemma3"]


@pytest.fixture
def refused(tmp_path):
    """`refused(config)` is the message with which a config.json is refused, at once."""

    def refused(config: dict) -> str:
        (tmp_path / "config.json").write_text(json.dumps(config))
        begun = time.monotonic()
        with pytest.raises(FamilyError) as caught:
            read_config(tmp_path)
        assert time.monotonic() - begun < 5
        message = str(caught.value)
        assert message.startswith(f"{tmp_path}/config.json: ") and len(message) < 400
        return message.removeprefix(f"{tmp_path}/config.json: ")

    return refused


def towered(name: str, text: dict) -> dict:
    """A config.json of any family, with these values in the section that holds the decoder's."""
    outer, _, inner = name.partition("+")
    if name in PLAIN:
        return dict(model_type=name, **text)
    return dict(
        model_type=outer,
        text_config=dict(model_type=inner or "gemma", **text),
        vision_config=dict(hidden_size=64, num_attention_heads=4),
    )


@pytest.mark.parametrize("name", families.SUPPORTED)
def test_the_sizes_themselves_are_read(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(towered(name, TEXT)))
    assert read_config(tmp_path)[2].config.width == 64


@pytest.mark.parametrize("key", SIZES)
@pytest.mark.parametrize("name", families.SUPPORTED)
def test_a_size_out_of_range_is_named(name, key, refused):
    least, most = ranges.WHOLE[key]
    for value in (*WRONG, most + 1):
        message = refused(towered(name, TEXT | {key: value}))
        expected = f"expected an integer from {least:,} to {most:,}"
        assert message.startswith(f"{key} is ") and message.endswith(expected), message


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("name", PLAIN)
def test_a_number_out_of_range_is_named(name, key, refused):
    for value in (0, -1.0, True, "1e-6", [1.0], 10**400, math.nan, math.inf, 1e40):
        message = refused(dict(model_type=name, **TEXT | {key: value}))
        assert f"{key} is " in message and "expected a number from " in message, message


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(head_dim=10**9), "head_dim is 1000000000; expected an integer from 1 to 1,024"),
        (dict(num_hidden_layers=10**9), "num_hidden_layers is 1000000000; expected an integer"),
        (dict(num_attention_heads=3, num_key_value_heads=3), "hidden_size is 64; expected a mult"),
        (dict(vocab_size=10**12), "vocab_size is 1000000000000; expected an integer from 1 to"),
        (dict(hidden_act=["silu"]), "activation ['silu'] is not supported; expected one of"),
        (dict(hidden_act="x" * 10_000), "xxx… is not supported; expected one of silu"),
        (dict(rope_scaling=dict(rope_type=["yarn"])), "rope type ['yarn'] is not supported"),
        (dict(rope_scaling=dict(rope_type="x" * 10_000)), "xxx… is not supported"),
        (dict(rope_scaling=dict(type="yarn", factor=2, beta_fast="x")), "beta_fast is 'x'; expec"),
        (dict(rope_scaling=dict(type="yarn", factor=2, truncate=3)), "truncate is 3; expected tru"),
        (dict(rope_scaling=dict(type="yarn", factor=math.nan)), "factor is nan; expected a number"),
        (
            dict(rope_scaling=dict(type="longrope", short_factor=[1] * 10_000, long_factor=[])),
            "short_factor is [1, 1, 1, 1",
        ),
        (
            dict(rope_scaling=dict(type="longrope", short_factor=["a"] * 8, long_factor=[])),
            "short_factor is 'a'; expected a number from 1e-06 to 1,000,000",
        ),
        (
            dict(rope_scaling=dict(type="llama3", factor=8, low_freq_factor=4, high_freq_factor=4)),
            "low_freq_factor is 4; expected less than high_freq_factor, 4",
        ),
    ],
)
def test_what_ended_in_tracebacks_is_named(changes, says, refused):
    assert says in refused(dict(model_type="llama", **TEXT | changes))


@pytest.mark.parametrize(
    ("vision", "says"),
    [
        (dict(num_channels=4), "num_channels is 4; expected an integer from 3 to 3"),
        (dict(image_size=10**9), "image_size is 1000000000; expected an integer from 1 to 8,192"),
        (dict(patch_size=500), "patch_size is 500; expected at most the image_size, 224"),
        (dict(num_hidden_layers=10**9), "num_hidden_layers is 1000000000; expected an integer"),
        (dict(layer_norm_eps=math.nan), "layer_norm_eps is nan; expected a number from 1e-15 to 1"),
        ([1], "vision_config is [1]; expected an object"),
    ],
)
def test_sizes_of_the_vision_tower(vision, says, refused):
    assert says in refused(dict(model_type="paligemma", text_config=TEXT, vision_config=vision))


def test_objects_are_expected_where_gemma_3_has_them(refused):
    for rope in ([1], "x", dict(full_attention=[1]), dict(sliding_attention="x")):
        message = refused(dict(model_type="gemma3_text", **TEXT, rope_parameters=rope))
        assert message.endswith("; expected an object"), message


def test_a_config_nested_deeply_is_refused(tmp_path):
    """By the parser, or where the parser still bears it, by the reader of the value."""
    for depth, says in (
        (100_000, "is not valid JSON (it is nested too deeply"),
        (400, "model_type [[["),
    ):
        nested = "[" * depth + "]" * depth
        (tmp_path / "config.json").write_text(f'{{"model_type": {nested}}}')
        with pytest.raises(FamilyError) as caught:
            read_config(tmp_path)
        assert says in str(caught.value)


def test_a_config_of_absurd_size_is_refused_unread(tmp_path):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(FamilyError, match=r"has 1,099,511,627,776 bytes; expected JSON of at most"):
        read_config(tmp_path)
