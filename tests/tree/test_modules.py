"""Names of modules stand for our leaves, in text models and in those with a vision tower."""

import re

import pytest

from jaxtune.families import SUPPORTED
from jaxtune.tree import modules

LEAVES = ["embed/w", "head/w", "norm/scale", "layers/attn_norm/scale", "layers/attn/q_norm/scale"]
LEAVES += [f"layers/attn/{part}/{leaf}" for part in "qkvo" for leaf in "wb"]
LEAVES += [f"layers/mlp/{part}/w" for part in ("gate", "up", "down")]


def chosen(name: str, leaf: str = ".*", before: str = "") -> list[str]:
    pattern = modules.pattern(name, leaf)
    return [path for path in LEAVES if re.fullmatch(pattern, before + path)]


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("q_proj", ["layers/attn/q/w", "layers/attn/q/b"]),
        ("self_attn.o_proj", ["layers/attn/o/w", "layers/attn/o/b"]),
        ("model.layers.mlp.up_proj", ["layers/mlp/up/w"]),
        ("gate_up_proj", ["layers/mlp/gate/w", "layers/mlp/up/w"]),
        ("qkv_proj", [f"layers/attn/{part}/{leaf}" for part in "qkv" for leaf in "wb"]),
        ("embed_tokens", ["embed/w"]),
        ("lm_head", ["head/w"]),
        ("input_layernorm", ["layers/attn_norm/scale"]),
    ],
)
def test_a_name_is_its_leaves(name, paths):
    for before in ("", "params/", "llm/", "params/llm/"):
        assert chosen(name, before=before) == paths


def test_all_linear_maps():
    weights = [path for path in LEAVES if path.startswith("layers") and path.endswith("/w")]
    assert chosen("all-linear", modules.WEIGHT) == weights
    assert chosen("attention", modules.WEIGHT) == weights[:4]


@pytest.mark.parametrize(
    "text",
    ["q_prj", "mlp.q_proj", "layers.3.q_proj", "layers/attn/q/w", ".*q_proj", "", "q_proj." * 50],
)
def test_other_texts_stay_as_they_are(text):
    assert modules.pattern(text) == text


def test_every_linear_map_of_every_family_has_its_name():
    """The table is right for the name tables from which checkpoints are read."""
    names = [name for family in SUPPORTED.values() for name in family.tables[-1]]
    linear = [name for name in names if name.theirs.endswith("_proj.weight")]
    assert len(linear) > 30
    for name in linear:
        if "img/" in name.ours[0] and "out_proj" not in name.theirs:
            continue  # has the name of the decoder's
        module = name.theirs.removesuffix(".weight").rpartition(".")[2]
        for path in name.ours:
            assert re.fullmatch(modules.pattern(module), path), (module, path)
