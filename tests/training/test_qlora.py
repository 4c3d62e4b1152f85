"""Models on quantised bases beside transformers, PEFT and bitsandbytes: read, trained, written."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import jaxtune
from jaxtune import quant
from jaxtune.adapters import lora
from jaxtune.checkpoint.formats import bnb
from jaxtune.checkpoint.formats.safetensors import CheckpointError, Safetensors
from jaxtune.export import merging
from jaxtune.training.step import TrainState, compiled_step
from tests import reference
from tests.adapters.test_lora import MODULES, adapters, busy
from tests.marks import slow_after
from tests.training.test_step import FULL, followed, ours, padded, texts

# bitsandbytes' CPU kernel wants inputs that are multiples of its block.
SIZES = dict(hidden_size=64, intermediate_size=192, num_hidden_layers=2, vocab_size=320)
HEADS = dict(num_attention_heads=4, num_key_value_heads=2)
CASES = {
    "gemma3": reference.Case(
        "Gemma3TextConfig",
        dict(head_dim=32, sliding_window=6, query_pre_attn_scalar=24, **SIZES, **HEADS),
    ),
    "llama": reference.Case("LlamaConfig", dict(tie_word_embeddings=False, **SIZES, **HEADS)),
    "phi3": reference.Case("Phi3Config", SIZES | HEADS),  # fused projections
}


@dataclass
class Quantised:
    """A checkpoint, and what transformers and bitsandbytes make of it."""

    case: reference.Case
    plain: Path
    packed: Path
    live: Any


def live_model(directory: Path, double: bool) -> torch.nn.Module:
    options = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = AutoModelForCausalLM.from_pretrained(
        directory,
        quantization_config=options,
        dtype=torch.float32,
        device_map="cpu",
        attn_implementation="eager",
    )
    # Without gradients to keep, bitsandbytes computes on a CPU in another, coarser way.
    return model.train()


@pytest.fixture(autouse=True)
def _one_thread():
    """torch's sum of many scales depends on how many threads share it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    """`quantised("phi3", True)`: made once, doubly quantised."""
    made = {}

    def make(name: str, double: bool) -> Quantised:
        if (name, double) not in made:
            plain, packed = tmp_path_factory.mktemp(name), tmp_path_factory.mktemp(f"{name}-nf4")
            reference.make(CASES[name], plain)
            live = live_model(plain, double)
            live.save_pretrained(packed)
            made[name, double] = Quantised(CASES[name], plain, packed, live)
        return made[name, double]

    return make


def logits(model, tokens: np.ndarray) -> np.ndarray:
    """With gradients, as above."""
    return model(input_ids=torch.from_numpy(tokens), use_cache=False).logits.detach().numpy()


def distance(got, want: np.ndarray) -> float:
    return float(np.abs(np.asarray(got) - want).max() / want.std())


# Read


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_after(1, CASES))
@pytest.mark.parametrize("double", slow_after(1, [True, False]))
def test_logits_are_those_of_bitsandbytes(quantised, name, double, record_property):
    """Both ways in: quantised as it is read, and as transformers stored it."""
    made = quantised(name, double)
    tokens = reference.tokens(made.case)
    want = logits(made.live, tokens)
    kind = "nf4-double" if double else "nf4"
    if name != "phi3":  # whose fused weights we split, so that the scales' mean is another one
        model, variables = jaxtune.load(made.plain, quant=kind)
        error = distance(jax.jit(model.apply)(variables, tokens), want)
        record_property("difference in standard deviations", error)
        assert error < 5e-5  # the order of sums in float32
    model, variables = jaxtune.load(made.packed)
    error = distance(jax.jit(model.apply)(variables, tokens), want)
    record_property("stored in 4 bits, difference in standard deviations", error)
    assert error < 5e-5
    plain = jaxtune.load(made.plain)[1]
    full = distance(jax.jit(model.apply)(plain, tokens), want)
    assert full > 0.01  # quantisation shows


def test_what_is_held_is_a_rule(quantised):
    made = quantised("llama", True)
    rules = [
        (r"layers/mlp/down/w", None),
        (r"layers/mlp/.*/w", "int8"),
        (r"layers/attn/.*/w", "nf4"),
        (r".*", None),
    ]
    held = quant.by_path(jaxtune.load(made.plain, quant=rules)[1]["params"])
    kinds = {path: leaf.kind for path, leaf in held.items() if quant.is_quantized(leaf)}
    expected = {f"layers/attn/{name}/w": "nf4" for name in "qkvo"}
    assert kinds == expected | {f"layers/mlp/{name}/w": "int8" for name in ("gate", "up")}
    with pytest.raises(ValueError, match="quant 'nf5': expected one of nf4, nf4-double"):
        jaxtune.load(made.plain, quant="nf5")
    with pytest.raises(ValueError, match="cannot quantise embed/w: not a linear map of a layer"):
        jaxtune.load(made.plain, quant=[(".*", "nf4")])
    with pytest.raises(CheckpointError, match="already stored in 4 bits: omit quant"):
        jaxtune.load(made.packed, quant="nf4")


def test_a_weight_that_is_no_number_is_named(quantised, tmp_path):
    from safetensors.numpy import load_file, save_file

    made = quantised("llama", True)
    arrays = load_file(made.plain / "model.safetensors")
    arrays["model.layers.1.mlp.up_proj.weight"][3, 5] = np.nan
    save_file(arrays, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((made.plain / "config.json").read_text())
    said = r"model\.layers\.1\.mlp\.up_proj\.weight: cannot quantise a weight with infinite"
    with pytest.raises(CheckpointError, match=said):
        jaxtune.load(tmp_path, quant="nf4")


# Trained


def twin_of(live, variables):
    """The live model under PEFT, with the same adapters."""
    twin = get_peft_model(live, LoraConfig(target_modules="all-linear", r=4, lora_alpha=8))
    weights = dict(twin.named_parameters())
    with torch.no_grad():
        for path, adapter in adapters(variables).items():
            for layer in range(adapter.a.shape[0]):
                stem = f"base_model.model.model.layers.{layer}.{MODULES[path.split('/')[2]]}"
                for name, ours in (("lora_A", adapter.a), ("lora_B", adapter.b)):
                    values = torch.from_numpy(np.array(ours[layer].T))
                    weights[f"{stem}.{name}.default.weight"].copy_(values)
    return twin.train()


@pytest.mark.slow
def test_trajectory_is_that_of_peft_and_bitsandbytes(quantised, record_property):
    """The issue allows 1e-3; two float32 programs on the same dequantised weights come nearer."""
    made = quantised("gemma3", True)
    model, variables = jaxtune.load(made.plain, quant="nf4-double")
    variables = lora.add_lora(variables, rank=4, alpha=8, key=jax.random.key(0))
    twin = twin_of(live_model(made.plain, True), variables)
    state = TrainState.create(variables, optimizer=ours())
    before = jax.tree.map(np.array, state.frozen)
    state = followed(model, state, twin, padded, record_property)
    jax.tree.map(np.testing.assert_array_equal, state.frozen, before)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nf4-double", "int8"])
def test_no_plain_copy_of_a_quantised_leaf_is_in_the_step(base, kind):
    """In the compiled step, weights are plain a layer at a time: never stacked."""
    model, variables = jaxtune.load(base, quant=kind)
    variables = lora.add_lora(variables, rank=2, key=jax.random.key(0))
    state = TrainState.create(variables, optimizer=ours())
    moving, batch = state.replace(frozen=None), padded(list(texts(0)))
    text = compiled_step.lower(model, ours(), moving, state.frozen, batch).compile().as_text()
    arrays = re.findall(r"\b(f32|bf16|f16)\[([\d,]+)\]", text)
    sizes = {tuple(map(int, shape.split(","))) for _, shape in arrays}
    held = quant.by_path(state.frozen["params"])
    matrices = {leaf.matrix for leaf in held.values() if quant.is_quantized(leaf)}
    largest = max(rows * columns for rows, columns in matrices)
    assert any(np.prod(size) == largest for size in sizes)  # one layer's is there
    for rows, columns in matrices:
        assert not [size for size in sizes if np.prod(size) == 3 * rows * columns]


def test_what_is_quantised_does_not_train(base):
    _, variables = jaxtune.load(base, quant="nf4")
    said = r"params/layers/attn/k/w is quantised \(nf4\) and cannot be trained: train an adapter"
    with pytest.raises(ValueError, match=said):
        TrainState.create(variables, trainable=FULL, optimizer=ours())
    with pytest.raises(ValueError, match=r"pissa.*load the base without quant"):
        lora.add_lora(variables, key=jax.random.key(0), init="pissa")


@pytest.mark.slow
@pytest.mark.parametrize("variant", lora.VARIANTS)
def test_a_fresh_adapter_changes_nothing(base, variant):
    model, variables = jaxtune.load(base, quant="int8")
    tokens = jnp.arange(3, 23)[None]
    apply = jax.jit(model.apply)
    before = apply(variables, tokens)
    adapted = lora.add_lora(variables, key=jax.random.key(0), variant=variant)
    np.testing.assert_allclose(apply(adapted, tokens), before, atol=2e-5 * float(before.std()))


# Written


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_adapters_stand_under_peft_on_bitsandbytes(quantised, name, tmp_path):
    made = quantised(name, True)
    tokens = reference.tokens(made.case)
    for number, directory in enumerate((made.plain, made.packed)):
        given = None if directory == made.packed else "nf4-double"
        model, variables = jaxtune.load(directory, quant=given)
        variables = busy(lora.add_lora(variables, rank=3, key=jax.random.key(1)))
        target = jaxtune.save_adapter(variables, tmp_path / str(number), directory)
        again = jaxtune.load_adapter(model, {"params": variables["params"]}, target)
        got = np.asarray(jax.jit(model.apply)(variables, tokens))
        np.testing.assert_array_equal(jax.jit(model.apply)(again, tokens), got)
        if name != "phi3" or directory == made.packed:  # see above
            live = PeftModel.from_pretrained(live_model(made.plain, True), target).train()
            assert distance(got, logits(live, tokens)) < 5e-5


@pytest.mark.slow
def test_adapters_of_another_base_are_refused(quantised, tmp_path):
    made = quantised("llama", True)
    variables = jaxtune.load(made.plain, quant="nf4")[1]
    variables = busy(lora.add_lora(variables, rank=3, key=jax.random.key(1)))
    other = tmp_path / "other"
    reference.make(made.case, other, seed=1)
    with pytest.raises(CheckpointError, match=r"of the variables is not model\.layers\.0"):
        jaxtune.save_adapter(variables, tmp_path / "adapter", other)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["lora", "dora"])
def test_merged_into_the_original_or_the_dequantised_weights(quantised, variant, tmp_path):
    made = quantised("llama", True)
    model, variables = jaxtune.load(made.plain, quant="nf4-double")
    variables = busy(lora.add_lora(variables, rank=3, key=jax.random.key(1), variant=variant))
    original = jaxtune.load(made.plain)[1] | {"lora": variables["lora"]}
    tokens = reference.tokens(made.case)
    found = {}
    for into, unmerged in (("original", original), ("dequantised", variables)):
        target = jaxtune.save_merged(model, variables, tmp_path / into, "float32", into=into)
        live = AutoModelForCausalLM.from_pretrained(target, attn_implementation="eager").eval()
        found[into] = reference.logits(live, tokens)
        assert distance(jax.jit(model.apply)(unmerged, tokens), found[into]) < 5e-5
    assert distance(found["original"], found["dequantised"]) > 0.01
    jaxtune.save_merged(model, variables, tmp_path / "chosen", "float32")
    plain = jax.jit(model.apply)(merging.merged(model, variables, into, "float32"), tokens)
    assert distance(plain, found[into]) < 5e-5
    apart = merging.differences(model, variables, tokens, "float32")
    assert apart["dequantised"].logits < 5e-5
    assert apart["original"].logits > 0.01 and apart["original"].kl > apart["dequantised"].kl
    chosen, original = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("chosen", "original")
    )
    assert chosen == original


@pytest.mark.slow
def test_what_was_stored_in_4_bits_is_merged_dequantised(quantised, tmp_path):
    made = quantised("phi3", True)
    model, variables = jaxtune.load(made.packed)
    variables = busy(lora.add_lora(variables, rank=3, key=jax.random.key(1)))
    with pytest.raises(CheckpointError, match="no full-precision weights to merge into"):
        jaxtune.save_merged(model, variables, tmp_path / "merged", into="original")
    jaxtune.save_merged(model, variables, tmp_path / "merged", dtype="float32")
    assert not bnb.packed(Safetensors.open(tmp_path / "merged"))
    live = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", attn_implementation="eager")
    tokens = reference.tokens(made.case)
    want = np.asarray(jax.jit(model.apply)(variables, tokens))
    assert distance(reference.logits(live.eval(), tokens), want) < 5e-5
