"""inspect against transformers' own counts, files' sizes, and tokenizers made here."""

import dataclasses
import functools
import io
import json
import math
import re
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
import sentencepiece
import tokenizers
import torch
import transformers
from tokenizers import models, processors
from transformers import PreTrainedTokenizerFast

import jaxtune
from jaxtune import quant, tree
from jaxtune.checkpoint import hub
from jaxtune.checkpoint.formats.safetensors import CheckpointError, Safetensors, write_sharded
from jaxtune.checkpoint.hub import HubError
from jaxtune.cli.inspect.report import inspect
from jaxtune.cli.inspect.table import table
from jaxtune.families import ConfigError
from tests import reference
from tests.checkpoint import test_hub
from tests.checkpoint.formats import test_bnb
from tests.marks import slow_after

server = test_hub.server  # the fixtures
saved = test_bnb.saved
CASES = list(reference.CASES)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """`made("llama-linear")` is that case's directory and transformers model, made once."""

    @functools.cache
    def make(name):
        directory = tmp_path_factory.mktemp(name)
        return directory, reference.make(reference.CASES[name], directory)

    return make


@pytest.fixture
def llama(made, tmp_path):
    """A Llama checkpoint of one's own, to spoil."""
    return shutil.copytree(made("llama-linear")[0], tmp_path / "llama")


def edit_config(directory, drop=(), **changes):
    file = directory / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: config[key] for key in config if key not in drop}))


def rewrite(directory, change):
    """Write the weights again as `change` turns a dictionary of arrays into another."""
    with Safetensors.open(directory) as stored:
        arrays = change({name: np.array(stored.read(name)) for name in stored.tensors})
    (directory / "model.safetensors").unlink()
    shapes = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    write_sharded(directory, shapes, arrays.__getitem__)


# The tree


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


def test_a_mesh_under_weights_of_4_bits(saved):
    _, _, packed = saved
    _, variables = jaxtune.load(packed)
    leaves = quant.by_path(variables["params"])
    whole, split = (inspect(packed, {"fsdp": n}) for n in (1, 4))
    for leaf in whole.leaves:
        arrays = jax.tree.leaves(leaves[leaf.path])
        held = sum(each.size * jax.dtypes.itemsize_bits(each.dtype) for each in arrays) // 8
        assert leaf.placement.bytes_per_device == held
    placed = {leaf.path: leaf.placement for leaf in split.leaves}
    down, up = placed["layers/mlp/down/w"], placed["layers/mlp/up/w"]
    # The mean and the one peak of each layer's scales are on every device.
    double = leaves["layers/mlp/down/w"].kind == "nf4-double"
    scale, beside = (1, 2 * (4 + 4)) if double else (4, 0)
    codes, scales = 2 * 192 * 64 // 2, 2 * 3 * 64 * scale
    assert down.axes == (None, None, "fsdp")
    assert down.bytes_per_device == (codes + scales) // 4 + beside
    assert up.axes == (None, "fsdp", None)  # within their blocks, of which outputs have one each
    assert up.bytes_per_device == codes // 4 + scales + beside


def test_what_is_stored_in_4_bits_is_not_quantised_again(saved):
    _, plain, packed = saved
    assert inspect(packed, quant=[]).quant.sizes == inspect(plain, quant=[]).quant.sizes
    with pytest.raises(CheckpointError, match="is stored in 4 bits already: what int8 does can be"):
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


# The mesh


def test_a_mesh_of_devices_that_are_not_there(made):
    report = inspect(made("llama-linear")[0], {"fsdp": 8, "tensor": 2})
    placed = {leaf.path: leaf.placement for leaf in report.leaves}
    assert placed["layers/attn/q/w"].axes == (None, "fsdp", "tensor")
    assert placed["layers/attn/q/w"].bytes_per_device == 3 * (48 // 8) * (48 // 2) * 4
    assert placed["layers/mlp/down/w"].axes == (None, "tensor", "fsdp")
    assert placed["layers/attn_norm/scale"].axes == (None, None)
    assert placed["layers/attn_norm/scale"].undivided == ()
    # 211 rows do not split in two, the width does in eight.
    assert placed["embed/w"].axes == (None, "fsdp")
    assert placed["embed/w"].undivided == ("tensor=2 does not divide 211",)
    assert placed["embed/w"].bytes_per_device == 211 * 6 * 4
    assert report.notes[0] == "tensor=2 does not divide 211, so this leaves whole embed/w, head/w"
    total = sum(placement.bytes_per_device for placement in placed.values())
    assert report.totals["bytes_per_device"] == total
    assert report.mesh == {"fsdp": 8, "tensor": 2}


def test_what_a_device_holds_depends_on_the_dtype(made):
    directory, _ = made("llama-linear")
    stored, rounded = (inspect(directory, {"fsdp": 4}, dtype) for dtype in ("auto", "bfloat16"))
    assert stored.totals["bytes_per_device"] == 2 * rounded.totals["bytes_per_device"]
    assert stored.totals["bytes"] == rounded.totals["bytes"]
    assert stored.notes == inspect(directory).notes  # no axis of this mesh is left out


@pytest.mark.parametrize(
    ("axes", "dtype", "problem"),
    [
        ({"fdsp": 8}, "auto", "'fdsp' is not known: expected data, fsdp, tensor"),
        ({"fsdp": 0}, "auto", "fsdp=0: a size of 1 or more"),
        ({"fsdp": 8}, "int8", "dtype 'int8': expected one of auto, float32"),
    ],
)
def test_meshes_and_dtypes_that_make_no_sense(made, axes, dtype, problem):
    with pytest.raises(ValueError, match=re.escape(problem)):
        inspect(made("llama-linear")[0], axes, dtype)


# The model


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


# What is refused


def test_tensors_that_do_not_fit_are_all_listed(llama):
    lost = {"model.norm.weight", "model.layers.2.mlp.up_proj.weight"}
    rewrite(llama, lambda arrays: {name: arrays[name] for name in arrays if name not in lost})
    with pytest.raises(CheckpointError) as caught:
        inspect(llama)
    assert all(name in str(caught.value) for name in lost)


def test_quantised(llama):
    edit_config(llama, quantization_config=dict(quant_method="gptq"))
    with pytest.raises(CheckpointError, match=r"stored quantised \(gptq, as"):
        inspect(llama)


def test_unknown_model_type(llama):
    edit_config(llama, model_type="lama")
    with pytest.raises(ConfigError, match="'lama' is not supported \\(nearest: 'llama'\\)"):
        inspect(llama)


def test_a_file_in_place_of_its_directory(llama):
    with pytest.raises(CheckpointError, match="is a file: a checkpoint is a directory"):
        inspect(llama / "model.safetensors")


# The tokenizer


def bpe(directory, **options):
    """A tokenizer as `save_pretrained` writes it."""
    tokens = ["<pad>", "<s>", "</s>", "<unk>", "a", "b", "ab"]
    numbers = {token: number for number, token in enumerate(tokens)}
    made = tokenizers.Tokenizer(models.BPE(numbers, [("a", "b")], unk_token="<unk>"))
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    named = dict(bos_token="<s>", eos_token="</s>", pad_token="<pad>") | options
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **named)
    tokenizer.save_pretrained(directory)
    return tokenizer


def settings(directory, drop=(), **changes):
    file = directory / "tokenizer_config.json"
    found = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: found[key] for key in found if key not in drop}))


def facts(directory):
    return inspect(directory).tokenizer


def test_a_saved_tokenizer(llama):
    tokenizer = bpe(llama)
    found = facts(llama)
    assert (found["kind"], found["file"]) == ("BPE", "tokenizer.json")
    assert found["tokens"] == len(tokenizer) == 7
    assert found["special"] == dict(
        bos=dict(token="<s>", id=tokenizer.bos_token_id),
        eos=dict(token="</s>", id=tokenizer.eos_token_id),
        pad=dict(token="<pad>", id=tokenizer.pad_token_id),
        unk=dict(token="<unk>", id=tokenizer.convert_tokens_to_ids("<unk>")),
    )
    assert found["adds_bos"] is True
    assert tokenizer("ab").input_ids[0] == tokenizer.bos_token_id
    assert not found["chat_template"]
    assert found["problems"] == []
    assert inspect(llama).notes == ()


def test_what_ends_a_text(llama):
    bpe(llama)
    generation = llama / "generation_config.json"
    generation.write_text(json.dumps(dict(eos_token_id=[2, 6])))
    assert facts(llama)["stops"] == [dict(token="</s>", id=2), dict(token="ab", id=6)]
    assert facts(llama)["missing"] == []
    generation.unlink()
    assert facts(llama)["stops"] == [dict(token="</s>", id=2)]  # as config.json says
    assert facts(llama)["missing"] == ["generation_config.json"]


def test_unigram(llama):
    made = tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -2.0)], 0))
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="b").save_pretrained(llama)
    found = facts(llama)
    assert (found["kind"], found["tokens"]) == ("Unigram", 3)
    assert found["special"]["eos"] == dict(token="b", id=2)


@pytest.mark.parametrize("told", [True, False, None])
def test_tokenizer_json_decides_about_bos(llama, told):
    bpe(llama)
    settings(llama, **({} if told is None else dict(add_bos_token=told)))
    file = llama / "tokenizer.json"
    parsed = json.loads(file.read_text())
    template, level = parsed["post_processor"], {"type": "Sequence", "processors": []}
    for processor, adds in [
        (template, True),
        (None, False),
        (level, False),
        ({"type": "Sequence", "processors": [level, template]}, True),
        ({**template, "single": template["single"][1:]}, False),
    ]:
        file.write_text(json.dumps(parsed | {"post_processor": processor}))
        found = facts(llama)
        loaded = transformers.AutoTokenizer.from_pretrained(llama)
        assert found["adds_bos"] is adds
        assert (loaded("ab").input_ids[0] == loaded.bos_token_id) is adds
        assert bool(found["problems"]) == (told is not None and told != adds)


def test_chat_templates(llama):
    bpe(llama)
    (llama / "chat_template.jinja").write_text("{{ messages }}")
    assert facts(llama)["chat_template"]
    (llama / "chat_template.jinja").unlink()
    settings(llama, chat_template="{{ messages }}")
    assert facts(llama)["chat_template"]


def test_names_of_special_tokens_elsewhere(llama):
    bpe(llama)
    settings(llama, drop=("bos_token", "eos_token"), pad_token=None)
    named = dict(eos_token=dict(content="ab"), pad_token="b")
    (llama / "special_tokens_map.json").write_text(json.dumps(named))
    special = facts(llama)["special"]
    assert special["eos"] == dict(token="ab", id=6)
    assert special["bos"] == dict(token="<s>", id=1)  # by its number in config.json
    assert special["pad"] is None  # tokenizer_config.json says that there is none


def test_more_tokens_than_rows(llama):
    bpe(llama)
    (llama / "added_tokens.json").write_text(json.dumps({"<image>": 211, "<last>": 210}))
    added = {str(number): dict(content=f"<{number}>") for number in range(212, 216)}
    settings(llama, added_tokens_decoder=added)
    report = inspect(llama)
    assert (report.tokenizer["tokens"], report.tokenizer["past_the_rows"]) == (13, 5)
    assert report.notes == (
        "the tokenizer has 5 tokens for which the embedding, of 211 rows, has none: "
        "<image> 211, <212> 212, <213> 213, <214> 214 and 1 more",
    )


def test_sentencepiece(llama):
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["hello world these are some pieces"] * 20),
        model_writer=written,
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (llama / "tokenizer.model").write_bytes(written.getvalue())
    found = facts(llama)
    assert (found["kind"], found["file"]) == ("SentencePiece", "tokenizer.model")
    model = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    assert found["tokens"] == model.vocab_size()
    assert found["special"]["bos"] == dict(token="<s>", id=model.bos_id())
    assert found["special"]["unk"] == dict(token="<unk>", id=model.unk_id())
    assert found["adds_bos"] is None
    (llama / "tokenizer_config.json").write_text('{"add_bos_token": true}')
    assert facts(llama)["adds_bos"] is True


def test_no_tokenizer(llama):
    report = inspect(llama)
    assert report.tokenizer["kind"] is None and report.tokenizer["tokens"] == 0
    assert "no tokenizer: tokenizer.json or a SentencePiece .model was expected" in report.notes[0]
    assert report.notes[0] in " ".join(table(report).split())


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", '{"model": 3}'),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {"a": "b"}}}'),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {}}, "added_tokens": [7]}'),
        ("tokenizer.json", '{"model": {"vocab": {"a": 0}}, "post_processor": {"processors": 3}}'),
        ("tokenizer.model", "a table of tokens, as tiktoken has it"),
        ("tokenizer.model", ""),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {}}}'),
        ("tokenizer_config.json", "null"),
        ("special_tokens_map.json", "\x00"),
        ("added_tokens.json", '["a"]'),
        ("generation_config.json", '{"eos_token_id": {}'),
    ],
)
def test_odd_files_leave_a_note(llama, file, text):
    bpe(llama)
    if file == "tokenizer.model":
        (llama / "tokenizer.json").unlink()
    (llama / file).write_text(text)
    notes = inspect(llama).notes
    expected = "no tokenizer" if not text else f"{file} cannot be read: "
    assert any(note.startswith(expected) for note in notes)


@pytest.mark.parametrize("value", [7, ["<s>"], {}, "", "<lost>"])
def test_odd_special_tokens(llama, value):
    bpe(llama)
    settings(llama, bos_token=value)
    report = inspect(llama)
    if value == "<lost>":
        assert report.notes == ("the bos token '<lost>' is not in the vocabulary",)
        assert report.tokenizer["special"]["bos"] == dict(token="<lost>", id=None)
    else:
        assert not report.tokenizer["special"]["bos"]
    table(report)


# The table


@pytest.mark.parametrize("axes", [None, {"fsdp": 5, "tensor": 2}])
@pytest.mark.parametrize("name", ["gemma3-tower", "llama-llama3", "phi4-mini-longrope-long"])
def test_table(made, name, axes):
    report = inspect(made(name)[0], axes)
    text = table(report)
    lines = text.splitlines()
    assert max(map(len, lines[1:])) <= 100
    for leaf in report.leaves:
        line = next(line for line in lines if line.startswith(f"{leaf.path} "))
        assert f" {leaf.parameters:,} " in line
        assert " × ".join(map(str, leaf.shape)) in line
    total = next(line for line in lines if line.startswith("total "))
    assert f"{report.totals['parameters']:,}" in total
    assert "stored as" not in text
    assert all(leaf.stored_as in table(report, names=True) for leaf in report.leaves)


def test_table_of_a_mesh(made):
    lines = table(inspect(made("llama-llama3")[0], {"fsdp": 8, "tensor": 2})).splitlines()
    query = next(line for line in lines if line.startswith("layers/attn/q/w"))
    assert query.split()[-5:] == ["-,", "fsdp,", "tensor", "1.69", "KiB"]
    scale = next(line for line in lines if line.startswith("norm/scale"))
    assert scale.split()[-3:] == ["replicated", "192", "B"]


def test_table_shows_the_tokenizer(llama):
    bpe(llama)
    text = table(inspect(llama))
    assert "BPE in tokenizer.json, 7 tokens" in text
    assert "bos <s> 1 (added to every text), eos </s> 2, pad <pad> 0, unk <unk> 3" in text


# Repositories


class Ranged(test_hub.Handler):
    """Serves parts of files, as the Hub does, and counts the bytes of each."""

    def answer_file(self, data):
        name = self.path.rsplit("/", 1)[1]
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range") or "")
        if asked and self.command == "GET":
            data = data[int(asked[1]) : int(asked[2]) + 1]
        if self.command == "GET":
            self.server.served[name] = self.server.served.get(name, 0) + len(data)
        super().answer_file(data)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A checkpoint of a few megabytes in shards, with a tokenizer."""
    directory = tmp_path_factory.mktemp("published")
    case = reference.Case("LlamaConfig", dict(vocab_size=8000, tie_word_embeddings=True))
    model = reference.make(case, directory / "single")
    model.save_pretrained(directory / "sharded", max_shard_size="500KB")
    for layout in ("single", "sharded"):
        bpe(directory / layout)
    return directory


@pytest.fixture
def hosted(server):
    """`hosted(directory)` puts its files on a Hub."""
    server.RequestHandlerClass = Ranged
    server.served = {}

    def host(directory):
        server.files = {file.name: file.read_bytes() for file in directory.iterdir()}
        return server

    return host


@pytest.mark.parametrize("layout", ["single", "sharded"])
def test_a_repository_without_its_weights(hosted, published, tmp_path, layout):
    server = hosted(published / layout)
    weights = [name for name in server.files if name.endswith(".safetensors")]
    assert (len(weights) > 1) == (layout == "sharded")
    report = inspect(test_hub.REPO)
    local = inspect(published / layout)
    assert dataclasses.replace(report, source=local.source, directory=local.directory) == local
    # The largest file is mostly weights; 100 kB is what huggingface_hub asks for to find a header.
    assert all(server.served[name] <= 100_001 for name in weights)
    assert sum(len(server.files[name]) for name in weights) > 10 * server.served[weights[0]]
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_bits_of_a_repository(hosted, published):
    server = hosted(published / "sharded")
    assert inspect(test_hub.REPO, quant=[]).quant == inspect(published / "single", quant=[]).quant
    with pytest.raises(
        CheckpointError, match=r"nf4 reads the weights, and model-.* is not on this"
    ):
        inspect(test_hub.REPO, quant=["nf4"])
    weights = [name for name in server.served if name.endswith(".safetensors")]
    assert weights and all(server.served[name] <= 2 * 100_001 for name in weights)  # headers, twice


def test_a_repository_in_the_cache_is_not_asked_again(hosted, published):
    server = hosted(published / "single")
    hub.locate(test_hub.REPO)
    server.served.clear()
    inspect(test_hub.REPO)
    assert server.served == {}


def test_a_repository_that_cannot_be_reached(hosted, published, monkeypatch):
    server = hosted(published / "single")
    inspect(test_hub.REPO)  # now all but the weights is in the cache
    monkeypatch.setattr(test_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        HubError, match="HF_HUB_OFFLINE is set, and only part of it is in the cache"
    ):
        inspect(test_hub.REPO)
    monkeypatch.setattr(test_hub.constants, "HF_HUB_OFFLINE", False)
    server.refusals["model.safetensors"] = (403, {"X-Error-Code": "GatedRepo"})
    with pytest.raises(HubError, match="is gated, and the account of your token has no access"):
        inspect(test_hub.REPO)


def test_a_repository_without_safetensors(hosted, published, tmp_path):
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / "pickled").mkdir(exist_ok=True)
        shutil.copy(published / "single" / name, tmp_path / "pickled" / name)
    hosted(tmp_path / "pickled")
    with pytest.raises(HubError, match=r"maker/model has no model\.safetensors and no"):
        inspect(test_hub.REPO)


def test_a_repository_of_packed_tensors(hosted, llama):
    file = llama / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].replace(b'"F32"', b'"F4"', 1)
    file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    hosted(llama)
    with pytest.raises(HubError, match=r"maker/model: tensor .* has dtype F4; jaxtune reads F64"):
        inspect(test_hub.REPO)


def test_json_says_the_same(made):
    plain = dataclasses.asdict(inspect(made("phi3-window")[0], {"fsdp": 2}))
    again = json.loads(json.dumps(plain))
    assert again["totals"] == plain["totals"]
    sizes = [math.prod(leaf["shape"]) for leaf in again["leaves"]]
    assert sum(sizes) == again["totals"]["parameters"]
