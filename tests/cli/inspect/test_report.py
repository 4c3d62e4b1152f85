"""inspect against transformers' own counts, files' sizes, and tokenizers made here."""

import json
import re
import shutil

import ml_dtypes
import pytest
import torch

import jaxtune
from jaxtune import quant, tree
from jaxtune.checkpoint.formats.safetensors import CheckpointError, Safetensors
from jaxtune.cli.inspect.report import inspect
from jaxtune.cli.inspect.table import table
from jaxtune.families import FamilyError
from tests import reference
from tests.cli.inspect.checkpoints import CASES, edit_config, rewrite
from tests.marks import slow_after


@pytest.mark.parametrize("name", slow_after(3, CASES))
def test_counts_are_those_of_transformers(made, name):
    directory, model = made(name)
    report = inspect(directory)
    others = sum(other.parameters for other in report.others)
    # `parameters()` gives a tied weight once.
    counted = {id(weight): weight.numel() for weight in model.parameters()}
    assert report.totals["parameters"] + others == sum(counted.values())
    assert report.totals["parameters"] == sum(leaf.parameters for leaf in report.leaves)
    ends = {id(each.weight): each.weight.numel() for each in ends_of(model)}
    assert report.totals["embedding"] == sum(ends.values())
    assert report.totals["non_embedding"] == report.totals["parameters"] - sum(ends.values())
    assert bool(report.others) == (name == "gemma3-tower")


def ends_of(model):
    return model.get_input_embeddings(), model.get_output_embeddings()


@pytest.mark.parametrize("name", ["gemma3-tower", "phi3-window", "qwen3-mqa-biased"])
def test_leaves_are_those_that_load_makes(made, name):
    directory, _ = made(name)
    report = inspect(directory)
    _, variables = jaxtune.load(directory)
    loaded = {path: leaf.shape for path, leaf in tree.flatten(variables["params"]).items()}
    assert {leaf.path: leaf.shape for leaf in report.leaves} == loaded


@pytest.mark.parametrize("name", ["gemma3-tower", "phi3-window", "llama-linear"])
def test_every_stored_tensor_is_in_some_row(made, name):
    directory, _ = made(name)
    report = inspect(directory)
    stored = Safetensors.open(directory).tensors
    named = {
        leaf.stored_as.replace("{layer}", str(layer))
        for leaf in report.leaves
        for layer in range(report.model["layers"])
    }
    others = [re.escape(other.names).replace(r"\*", ".*") for other in report.others]
    left = [tensor for tensor in stored if tensor not in named]
    assert named <= stored.keys()
    assert all(any(re.fullmatch(pattern, tensor) for pattern in others) for tensor in left)
    assert len(left) == sum(other.tensors for other in report.others)


def test_fused_tensors_give_their_rows(made):
    leaves = {leaf.path: leaf for leaf in inspect(made("phi4-mini-longrope-long")[0]).leaves}
    parts = [leaves[f"layers/attn/{part}/w"] for part in "qkv"]
    assert {leaf.stored_as for leaf in parts} == {"model.layers.{layer}.self_attn.qkv_proj.weight"}
    assert [leaf.rows for leaf in parts] == [(0, 64), (64, 96), (96, 128)]
    assert leaves["layers/attn/o/w"].rows is None


def data_bytes(directory):
    """The bytes of all weight files that are no header."""
    total = 0
    for file in directory.glob("*.safetensors"):
        total += file.stat().st_size - 8 - int.from_bytes(file.read_bytes()[:8], "little")
    return total


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_those_of_the_files(tmp_path, dtype):
    model = reference.make(reference.CASES["gemma3-tower"], tmp_path / "single").to(dtype)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    report = inspect(tmp_path / "sharded")
    assert {leaf.dtypes for leaf in report.leaves} == {(str(dtype).removeprefix("torch."),)}
    assert report.totals["bytes"] == sum(leaf.bytes for leaf in report.leaves)
    others = sum(other.bytes for other in report.others)
    assert report.totals["bytes"] + others == data_bytes(tmp_path / "sharded")
    assert report.totals["bytes_in_float32"] == 4 * report.totals["parameters"]
    assert report.totals["bytes_in_bfloat16"] == 2 * report.totals["parameters"]


def test_dtypes_may_differ_within_a_leaf(llama):
    def halve(arrays):
        return {
            name: array.astype(ml_dtypes.bfloat16) if "layers.1.self_attn.q" in name else array
            for name, array in arrays.items()
        }

    rewrite(llama, halve)
    report = inspect(llama)
    query = next(leaf for leaf in report.leaves if leaf.path == "layers/attn/q/w")
    assert query.dtypes == ("float32", "bfloat16")
    assert query.bytes == 48 * 48 * (4 + 2 + 4)
    assert report.totals["bytes"] == data_bytes(llama)


def test_no_weight_is_read(made, monkeypatch):
    def fail(*_):
        raise AssertionError("a weight was read")

    monkeypatch.setattr(Safetensors, "read", fail)
    monkeypatch.setattr(Safetensors, "_map", fail)
    assert inspect(made("llama-mqa-tied-biased")[0]).notes


def test_a_checkpoint_stored_in_4_bits(saved):
    _, plain, packed = saved
    report, unpacked = inspect(packed), inspect(plain)
    assert report.totals["parameters"] == unpacked.totals["parameters"]
    assert report.totals["bytes"] == data_bytes(packed)  # scales and what tells of them included
    assert report.others == ()
    _, variables = jaxtune.load(packed)
    kinds = {
        path: leaf.kind if quant.is_quantized(leaf) else str(leaf.dtype)
        for path, leaf in quant.by_path(variables["params"]).items()
    }
    assert {leaf.path: leaf.dtypes for leaf in report.leaves} == {
        path: (kind,) for path, kind in kinds.items()
    }
    assert {leaf.path: leaf.shape for leaf in report.leaves} == {
        leaf.path: leaf.shape for leaf in unpacked.leaves
    }
    assert f"  {kinds['layers/attn/q/w']}  " in table(report)


def test_what_is_stored_in_4_bits_is_not_quantised_again(saved):
    _, plain, packed = saved
    assert inspect(packed, quant=[]).quant.sizes == inspect(plain, quant=[]).quant.sizes
    with pytest.raises(CheckpointError, match="is already stored in 4 bits: measure int8 on the"):
        inspect(packed, quant=["int8"])


def test_a_tied_head_stored_again(llama):
    edit_config(llama, tie_word_embeddings=True)
    report = inspect(llama)
    assert [other.names for other in report.others] == ["lm_head.weight"]
    assert report.totals["parameters"] + 211 * 48 == inspect_untied(llama)
    assert any("lm_head.weight is stored although" in note for note in report.notes)


def inspect_untied(directory):
    edit_config(directory, tie_word_embeddings=False)
    return inspect(directory).totals["parameters"]


@pytest.mark.parametrize(
    ("name", "windows"),
    [
        ("llama-linear", "all global"),
        ("mistral-window", "all local (5)"),
        ("gemma2-windows", "1 local (6) : 1 global"),
        ("gemma2-mqa-uncapped", "1 global : 1 local (5)"),
        ("gemma3-seven-layers", "5 local (5) : 1 global"),
        ("gemma3-tower", "2 local (6), then 1 global"),
        ("qwen2-tied-windows", "1 global, then 2 local (7)"),
    ],
)
def test_windows(made, name, windows):
    assert inspect(made(name)[0]).model["windows"] == windows


def rope(layers, scheme, theta, rotated=16):
    return dict(layers=layers, theta=theta, scheme=scheme, rotated=rotated)


@pytest.mark.parametrize(
    ("name", "ropes"),
    [
        ("gemma-mqa", [rope("all", "default", 1e4)]),
        ("llama-linear", [rope("all", "linear ×2", 1e4, 12)]),
        ("llama-llama3", [rope("all", "llama3 ×8 from 32", 5e5, 12)]),
        ("qwen2-yarn", [rope("all", "yarn ×4 from 16", 1e4, 12)]),
        ("phi4-mini-longrope-long", [rope("all", "longrope ×4 from 16", 1e4, 12)]),
        (
            "gemma3-tower",
            [rope("local", "default", 1e4), rope("global", "linear ×8", 1e6)],
        ),
    ],
)
def test_ropes(made, name, ropes):
    assert inspect(made(name)[0]).model["ropes"] == ropes


def test_ropes_of_gemma_3_as_first_published(made, tmp_path):
    """Its config.json scales the global layers and leaves both thetas to the family."""
    directory = shutil.copytree(made("gemma3-tower")[0], tmp_path / "tower")
    text = json.loads((directory / "config.json").read_text())["text_config"]
    text |= dict(rope_scaling=dict(factor=8.0, rope_type="linear"))
    dropped = ("rope_parameters", "rope_theta", "rope_local_base_freq")
    edit_config(directory, text_config={key: text[key] for key in text if key not in dropped})
    found = inspect(directory).model["ropes"]
    assert found == [rope("local", "default", 1e4), rope("global", "linear ×8", 1e6)]


def test_facts(made):
    model = inspect(made("gemma3-linear-mqa")[0]).model
    expected = dict(
        family="Gemma 3 270M, 1B",
        model_type="gemma3_text",
        layers=3,
        width=48,
        hidden=72,
        heads=4,
        kv_heads=1,
        head_size=16,
        vocabulary=307,
        context=64,
        tied=True,
        qk_norm=True,
        post_norms=True,
        logit_softcap=20.0,
        attention_softcap=None,
    )
    assert model | expected == model


def test_tensors_that_do_not_fit_are_all_listed(llama):
    lost = {"model.norm.weight", "model.layers.2.mlp.up_proj.weight"}
    rewrite(llama, lambda arrays: {name: arrays[name] for name in arrays if name not in lost})
    with pytest.raises(CheckpointError) as caught:
        inspect(llama)
    assert all(name in str(caught.value) for name in lost)


def test_quantised(llama):
    edit_config(llama, quantization_config=dict(quant_method="gptq"))
    with pytest.raises(CheckpointError, match=r"stored quantised \('gptq', according"):
        inspect(llama)


def test_unknown_model_type(llama):
    edit_config(llama, model_type="lama")
    with pytest.raises(FamilyError, match="'lama' is not supported \\(nearest: 'llama'\\)"):
        inspect(llama)


def test_a_file_in_place_of_its_directory(llama):
    with pytest.raises(CheckpointError, match="is a file: expected a directory"):
        inspect(llama / "model.safetensors")
