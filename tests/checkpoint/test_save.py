"""Variables back into published layouts."""

import json
import os
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

import jaxtune
from jaxtune import tree
from jaxtune.checkpoint import save
from jaxtune.checkpoint.formats.safetensors import CheckpointError, Safetensors
from jaxtune.models.decoder import Decoder
from tests import reference
from tests.checkpoint.test_load import start
from tests.marks import slow_after
from tests.processes import free_port


@pytest.mark.parametrize("name", reference.EVERY)
def test_read_then_write_is_bit_exact(pair, name, tmp_path):
    made = pair(name)
    jaxtune.save_merged(
        made.model, made.variables, tmp_path / "out", dtype="auto", max_shard_bytes=60_000
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


@pytest.mark.parametrize("name", slow_after(1, ["gemma3-tower", "phi4-mini-longrope-long"]))
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


@pytest.mark.parametrize("held", ["auto", "float32"])
def test_by_default_weights_are_loaded_and_written_in_their_stored_dtype(pair, held, tmp_path):
    """Also from a model that is held, or was trained, in a wider dtype."""
    made = pair("gemma3-tower")
    jaxtune.save_merged(made.model, made.variables, tmp_path / "half", dtype="bfloat16")
    model, variables = jaxtune.load(tmp_path / "half")
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("bfloat16")}
    model, variables = jaxtune.load(tmp_path / "half", held)
    target = jaxtune.save_merged(model, variables, tmp_path / "again")
    with Safetensors.open(tmp_path / "half") as source, Safetensors.open(target) as written:
        assert written.tensors.keys() == source.tensors.keys()
        for name, info in source.tensors.items():
            assert written.tensors[name].dtype == info.dtype == jnp.dtype("bfloat16")
            np.testing.assert_array_equal(written.read(name), source.read(name))
    config = json.loads((target / "config.json").read_text())
    assert "bfloat16" in (config.get("dtype"), config.get("torch_dtype"))


def test_the_config_says_which_dtype(pair, tmp_path):
    made = pair("gemma3-tower")
    raw = json.loads((made.directory / "config.json").read_text())
    raw |= {"dtype": "float32", "text_config": raw["text_config"] | {"dtype": "float32"}}
    origin = tmp_path / "origin"
    shutil.copytree(made.directory, origin)
    (origin / "config.json").write_text(json.dumps(raw))
    model = made.model.clone(origin=jaxtune.Origin(origin))
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
        jaxtune.save_merged(made.model, {"params": params}, tmp_path / "out", "float16")
    assert list(tmp_path.iterdir()) == []


def test_shards_have_an_index(pair, tmp_path):
    made = pair("llama-linear")
    target = jaxtune.save_merged(
        made.model, made.variables, tmp_path / "out", dtype="auto", max_shard_bytes=100_000
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
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"already exists .* overwrite=True"):
        jaxtune.save_merged(made.model, made.variables, out)
    with pytest.raises(CheckpointError, match="does not look like a checkpoint"):
        jaxtune.save_merged(made.model, made.variables, out, overwrite=True)
    assert os.listdir(out) == ["notes.txt"]
    (out / "config.json").write_text("{}")
    jaxtune.save_merged(made.model, made.variables, out, overwrite=True)
    assert "model.safetensors" in os.listdir(out)
    assert "notes.txt" not in os.listdir(out)


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn", "bf16", "float64", int, {}])
def test_only_dtypes_that_keep_weights(pair, dtype, tmp_path):
    made = pair("llama-linear")
    with pytest.raises(ValueError, match="expected one of float32, bfloat16, float16 or auto"):
        jaxtune.save_merged(made.model, made.variables, tmp_path / "out", dtype=dtype)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.dtype("bfloat16"), np.float32])
def test_dtypes_other_than_by_name(pair, dtype, tmp_path):
    made = pair("llama-linear")
    target = jaxtune.save_merged(made.model, made.variables, tmp_path / "out", dtype=dtype)
    with Safetensors.open(target) as written:
        assert {info.dtype for info in written.tensors.values()} == {jnp.dtype(dtype)}
    config = json.loads((target / "config.json").read_text())
    assert jnp.dtype(dtype).name in (config.get("dtype"), config.get("torch_dtype"))


def refusal(model, variables, directory) -> str:
    """What save_merged says against it, having written nothing."""
    with pytest.raises(CheckpointError) as caught:
        jaxtune.save_merged(model, variables, directory / "out")
    assert list(directory.iterdir()) == []
    return str(caught.value)


def test_leaves_that_do_not_fit_are_listed_at_once(pair, tmp_path):
    made = pair("llama-linear")
    leaves = tree.flatten(made.variables["params"])
    query = leaves.pop("layers/attn/q/w")
    leaves["layers/attn/query/w"] = query
    leaves["embed/w"] = leaves["embed/w"][:-1]
    leaves["layers/mlp/up/w"] = leaves["layers/mlp/up/w"].astype(np.int8)
    said = refusal(made.model, {"params": tree.unflatten(leaves)}, tmp_path)
    vocabulary, width = made.variables["params"]["embed"]["w"].shape
    assert said.splitlines()[1:] == [
        f"  missing  layers/attn/q/w {query.shape}",
        f"  unknown  layers/attn/query/w {query.shape}",
        f"  shape    embed/w is {(vocabulary - 1, width)}, the model expects {(vocabulary, width)}",
        "  dtype    layers/mlp/up/w is int8, not floating-point",
    ]


def test_parts_of_variables_and_adapters_are_refused(pair, tmp_path):
    made = pair("llama-linear")
    said = refusal(made.model, made.variables["params"], tmp_path)
    assert re.search(r'the variables have no "params" \(found embed, .*\)', said)
    adapted = jaxtune.add_lora(made.variables, rank=2, key=jax.random.key(0))
    said = refusal(made.model, adapted | {"lora": {"embed": adapted["lora"]["layers"]}}, tmp_path)
    assert re.search(r"  adapter  embed/attn/q/w: a \(.*, but the model has no such weight", said)


def test_an_origin_that_describes_another_model(pair, tmp_path):
    made = pair("llama-linear")
    model = made.model.clone(origin=jaxtune.Origin(pair("qwen3-wide-heads").directory))
    said = refusal(model, made.variables, tmp_path)
    assert "does not describe the model that is being written" in said
    assert "  qk_norm: the model has False, the origin True" in said.splitlines()
    assert "  tied:" not in said


def test_integers_beside_the_weights_stay_integers(pair, tmp_path):
    made = pair("gemma3-tower")
    origin = tmp_path / "origin"
    shutil.copytree(made.directory, origin)
    tensors = load_file(origin / "model.safetensors")
    prefix = "" if any(name.startswith("vision_tower.") for name in tensors) else "model."
    tensors[f"{prefix}vision_tower.position_ids"] = np.arange(5)
    save_file(tensors, origin / "model.safetensors", metadata={"format": "pt"})
    model = made.model.clone(origin=jaxtune.Origin(origin))
    target = jaxtune.save_merged(model, made.variables, tmp_path / "out", dtype="bfloat16")
    written = Safetensors.open(target)
    ids = written.read(f"{prefix}vision_tower.position_ids")
    np.testing.assert_array_equal(ids, np.arange(5))
    assert ids.dtype == np.int64
    floating = {info.dtype for info in written.tensors.values()} - {np.dtype(np.int64)}
    assert floating == {jnp.dtype("bfloat16")}


def test_a_vision_tower_does_not_get_lost(pair, tmp_path):
    made = pair("gemma3-tower")
    shutil.copy(made.directory / "config.json", tmp_path)
    model = made.model.clone(origin=jaxtune.Origin(tmp_path))
    with pytest.raises(
        CheckpointError, match=r"no \*\.safetensors, from which the vision tower is"
    ):
        jaxtune.save_merged(model, made.variables, tmp_path / "out")
    assert os.listdir(tmp_path) == ["config.json"]


def test_companions_are_copied_before_the_weights(pair, tmp_path, monkeypatch):
    made = pair("llama-linear")

    def fail(*_):
        raise OSError("no such luck")

    monkeypatch.setattr(save, "write_sharded", lambda *_: pytest.fail("weights came first"))
    monkeypatch.setattr(save.shutil, "copyfile", fail)
    with pytest.raises(OSError, match="no such luck"):
        jaxtune.save_merged(made.model, made.variables, tmp_path / "out")


@pytest.mark.slow
def test_processes_succeed_and_fail_together(pair, tmp_path):
    """Two over loopback; one that hung would run into the timeout."""
    code = f"""
        import sys, jax
        rank, port = int(sys.argv[1]), sys.argv[2]
        jax.distributed.initialize(f"127.0.0.1:{{port}}", 2, rank)
        from pathlib import Path
        import jaxtune
        from jaxtune import sharding
        from jaxtune.checkpoint.formats.tensors import CheckpointError
        mesh = sharding.make_mesh({{"fsdp": 2}})
        model, variables = jaxtune.load({str(pair("qwen3-wide-heads").directory)!r}, mesh=mesh)

        def attempt(what, model, variables):
            try:
                place = Path({str(tmp_path)!r}) / what
                target = jaxtune.save_merged(model, variables, place, "float16")
            except CheckpointError as error:
                print("refused:", error)
            else:
                print("complete:", sorted(file.name for file in target.iterdir()))

        attempt("out", model, variables)
        attempt("out", model, variables)
        attempt("huge", model, jax.tree.map(lambda leaf: leaf * 1e9, variables))
        attempt("lost", model if rank == 0 else model.clone(origin=None), variables)
    """
    port = str(free_port())
    processes = [start(code, str(rank), port) for rank in range(2)]
    try:
        said = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    first, second = [
        [line for line in out.splitlines() if line.startswith(("complete", "refused"))]
        for out, _ in said
    ]
    assert len(first) == len(second) == 4, said
    assert first[0] == second[0]
    assert first[0].startswith("complete: ['config.json'")
    assert first[0].endswith("'model.safetensors']")
    assert "already exists" in first[1]
    assert "beyond float16's range" in first[2]
    assert "the model's origin is not set" in second[3]
    told = "refused: process {} could not write the checkpoint: see its error message"
    assert [second[1], second[2], first[3]] == [told.format(0), told.format(0), told.format(1)]
    assert os.listdir(tmp_path) == ["out"]


def test_a_model_needs_an_origin(pair, tmp_path):
    made = pair("llama-linear")
    model = Decoder(made.model.config)
    with pytest.raises(CheckpointError, match=r"origin is not set.*model\.clone\(origin"):
        jaxtune.save_merged(model, made.variables, tmp_path / "out")
    jaxtune.save_merged(
        model.clone(origin=jaxtune.Origin(made.directory)), made.variables, tmp_path / "out"
    )


def test_a_bare_config_is_origin_enough(pair, tmp_path):
    """A model made from nothing but a config.json can be written."""
    made = pair("phi3-window")
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(made.directory / "config.json", bare)
    model = made.model.clone(origin=jaxtune.Origin(bare))
    jaxtune.save_merged(model, made.variables, tmp_path / "out", dtype="auto")
    _, again = jaxtune.load(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, again, made.variables)
