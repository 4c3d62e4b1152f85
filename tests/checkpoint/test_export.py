"""Variables back into published layouts."""

import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import jaxtune
from jaxtune.checkpoint.files import CheckpointError, Safetensors
from jaxtune.models.decoder import Decoder
from tests import reference


@pytest.mark.parametrize("name", reference.CASES)
def test_read_then_write_is_bit_exact(pair, name, tmp_path):
    made = pair(name)
    jaxtune.save_merged(
        made.model, made.variables, tmp_path / "out", dtype=None, max_shard_bytes=60_000
    )
    before, after = Safetensors.open(made.directory), Safetensors.open(tmp_path / "out")
    assert after.tensors.keys() == before.tensors.keys()
    for tensor, info in before.tensors.items():
        assert after.tensors[tensor].shape == info.shape
        assert after.read(tensor).tobytes() == before.read(tensor).tobytes(), tensor
    configs = [
        json.loads((d / "config.json").read_text()) for d in (made.directory, tmp_path / "out")
    ]
    assert configs[0] == configs[1]
    live = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    tokens = reference.tokens(made.case)
    np.testing.assert_array_equal(
        reference.logits(live, tokens), reference.logits(made.reference, tokens)
    )


@pytest.mark.parametrize("name", ["gemma3-tower", "phi4-mini-longrope-long"])
def test_changed_weights_arrive(pair, name, tmp_path):
    made = pair(name)
    changed = jax.tree.map(lambda leaf: leaf * 1.25, made.variables)
    jaxtune.save_merged(made.model, changed, tmp_path / "out", dtype="float32")
    live = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    tokens = reference.tokens(made.case)
    want = reference.logits(live, tokens)
    assert np.abs(made.apply(changed, tokens) - want).max() < 5e-5 * want.std()
    assert np.abs(reference.logits(made.reference, tokens) - want).max() > 0.1 * want.std()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrower_dtypes(pair, dtype, tmp_path):
    made = pair("gemma3-tower")
    jaxtune.save_merged(made.model, made.variables, tmp_path / "out", dtype=dtype)
    with Safetensors.open(tmp_path / "out") as written, Safetensors.open(made.directory) as source:
        assert written.tensors.keys() == source.tensors.keys()
        for name in source.tensors:  # those of the vision tower too
            assert written.tensors[name].dtype == jnp.dtype(dtype)
            np.testing.assert_array_equal(written.read(name), source.read(name).astype(dtype))
    live = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert live.dtype == getattr(torch, dtype)


def test_the_config_says_which_dtype(pair, tmp_path):
    made = pair("gemma3-tower")
    raw = json.loads((made.directory / "config.json").read_text())
    raw |= {"dtype": "float32", "text_config": raw["text_config"] | {"dtype": "float32"}}
    origin = tmp_path / "origin"
    shutil.copytree(made.directory, origin)
    (origin / "config.json").write_text(json.dumps(raw))
    model = made.model.clone(origin=str(origin))
    target = jaxtune.save_merged(model, made.variables, tmp_path / "out", dtype="bfloat16")
    written = json.loads((target / "config.json").read_text())
    assert written["dtype"] == written["text_config"]["dtype"] == "bfloat16"
    assert "torch_dtype" not in written  # the newer spelling was there, and is kept


def test_values_beyond_float16_are_not_written(pair, tmp_path):
    made = pair("llama-linear")
    params = jax.tree.map(lambda leaf: leaf, made.variables["params"])
    params["layers"]["mlp"]["up"]["w"] = params["layers"]["mlp"]["up"]["w"].at[1, 2, 3].set(7e4)
    with pytest.raises(
        CheckpointError, match=r"layers.1.mlp.up_proj.weight has values up to 7e\+04"
    ):
        jaxtune.save_merged(made.model, {"params": params}, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_shards_have_an_index(pair, tmp_path):
    made = pair("llama-linear")
    target = jaxtune.save_merged(
        made.model, made.variables, tmp_path / "out", dtype=None, max_shard_bytes=100_000
    )
    files = sorted(file.name for file in target.glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((target / "model.safetensors.index.json").read_text())
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(made.variables))
    assert index["metadata"]["total_size"] == total
    _, again = jaxtune.load(target)
    jax.tree.map(np.testing.assert_array_equal, again, made.variables)


def test_tokenizer_files_go_along(pair, tmp_path):
    made = pair("llama-linear")
    source = tmp_path / "source"
    shutil.copytree(made.directory, source)
    companions = ["tokenizer.json", "tokenizer.model", "chat_template.jinja", "merges.txt"]
    (source / "tokenizer_training").mkdir()
    for name in [*companions, "README.md", "training_args.bin"]:
        (source / name).write_text(f"this is {name}")
    model, variables = jaxtune.load(source)
    target = jaxtune.save_merged(model, variables, tmp_path / "out")
    copied = {file.name for file in target.iterdir()}
    assert copied == {*companions, "config.json", "generation_config.json", "model.safetensors"}
    assert (target / "tokenizer.json").read_text() == "this is tokenizer.json"


def test_nothing_is_overwritten_unasked(pair, tmp_path):
    made = pair("llama-linear")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="already exists"):
        jaxtune.save_merged(made.model, made.variables, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["notes.txt"]
    jaxtune.save_merged(made.model, made.variables, tmp_path / "out", overwrite=True)
    assert "model.safetensors" in os.listdir(tmp_path / "out")


def test_a_model_needs_an_origin(pair, tmp_path):
    made = pair("llama-linear")
    model = Decoder(made.model.config)
    with pytest.raises(CheckpointError, match=r"origin is not set.*model\.clone\(origin"):
        jaxtune.save_merged(model, made.variables, tmp_path / "out")
    jaxtune.save_merged(model.clone(origin=str(made.directory)), made.variables, tmp_path / "out")


def test_a_bare_config_is_origin_enough(pair, tmp_path):
    """A model made from nothing but a config.json can be written."""
    made = pair("phi3-window")
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(made.directory / "config.json", bare)
    model = made.model.clone(origin=str(bare))
    jaxtune.save_merged(model, made.variables, tmp_path / "out", dtype=None)
    _, again = jaxtune.load(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, again, made.variables)
