"""Adapters made for tests, on both sides: ours with numbers in them, and those that PEFT makes."""

import json
import warnings
import zlib

import jax
import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

import jaxtune
from jaxtune import tree
from jaxtune.adapters.lora import Lora, add_lora
from jaxtune.checkpoint.peft import adapter_config
from tests import reference

PLAIN, FUSED, TOWER = "gemma3-linear-mqa", "phi3-window", "gemma3-tower"
# Both sides multiply in float32, in another order; the bound that was promised is twice this.
NEAR = 5e-5
WEIGHTS = "adapter_model.safetensors"


def is_lora(node) -> bool:
    return isinstance(node, Lora)


def adapters(variables) -> dict[str, Lora]:
    return tree.flatten(variables["lora"], is_leaf=is_lora)


def busy(variables):
    """The same adapters, with numbers in every `b` and magnitudes off their start."""

    def fill(path, adapter):
        random = np.random.default_rng(zlib.crc32(path.encode()))
        b = adapter.b + 0.1 * random.standard_normal(adapter.b.shape, np.float32)
        if adapter.magnitude is None:
            return adapter.replace(b=b)
        factor = np.exp(0.3 * random.standard_normal(adapter.magnitude.shape, np.float32))
        return adapter.replace(b=b, magnitude=adapter.magnitude * factor)

    return {**variables, "lora": tree.map_with_path(fill, variables["lora"], is_leaf=is_lora)}


def begun(made, **options):
    """What `add_lora` makes of a pair's variables, compiled as one."""
    targets = [r"layers/attn/[qv]/w", r"layers/mlp/up/w"]
    options = dict(rank=4, alpha=6, targets=targets, key=jax.random.key(1)) | options
    variables = jax.jit(lambda variables: add_lora(variables, **options))(made.variables)
    return jax.tree.map(np.asarray, variables)


def adapted(made, variables=None, *, rank=4, alpha=6, variant="lora", dropout=0.0, targets=None):
    """Busy adapters beside the weights of a pair, or others of their shapes; compiles nothing."""
    variables = made.variables if variables is None else variables
    shapes = jax.eval_shape(
        lambda: add_lora(
            made.variables,
            rank=rank,
            variant=variant,
            key=jax.random.key(0),
            targets=targets or "all-linear",
        )["lora"]
    )
    params = tree.flatten(variables["params"])
    random = np.random.default_rng(1)

    def fill(path, shaped):
        *layers, inside, _ = shaped.a.shape
        norms = np.linalg.norm(np.asarray(params[path], np.float32), axis=-2)
        return Lora(
            a=random.uniform(-1, 1, shaped.a.shape).astype(np.float32) * inside**-0.5,
            b=np.zeros(shaped.b.shape, np.float32),
            scale=np.full(layers, alpha / (rank**0.5 if variant == "rslora" else rank), np.float32),
            dropout=np.full(layers, dropout, np.float32) if dropout else None,
            magnitude=norms if variant == "dora" else None,
        )

    return busy({**variables, "lora": tree.map_with_path(fill, shapes, is_leaf=is_lora)})


def live(made):
    """The base as its checkpoint gives it to anyone."""
    return AutoModelForCausalLM.from_pretrained(made.directory, attn_implementation="eager")


def read_by_peft(made, directory):
    """PEFT's model with the adapter of a directory, which must have all keys that it looks for."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        twin = PeftModel.from_pretrained(live(made), directory).eval()
    assert not [str(each.message) for each in caught if "keys" in str(each.message)]
    return twin


def config(directory) -> dict:
    return json.loads((directory / adapter_config.CONFIG_NAME).read_text())


def error(got, want) -> float:
    return float(np.abs(np.asarray(got) - want).max() / want.std())


def check_out(made, variables, directory, record_property=lambda *_: None) -> None:
    """PEFT computes our logits from the directory, and the adapter matters."""
    tokens = reference.tokens(made.case)
    want = reference.logits(read_by_peft(made, directory), tokens)
    assert error(reference.logits(made.reference, tokens), want) > 0.1
    reached = error(made.apply(variables, tokens), want)
    record_property("error", reached)
    assert reached < NEAR


def check_same(one, other) -> None:
    """The same adapters, bit for bit."""
    assert jax.tree.structure(one["lora"]) == jax.tree.structure(other["lora"])
    jax.tree.map(np.testing.assert_array_equal, one["lora"], other["lora"])


def randomised(twin):
    """A PEFT model as if trained: numbers in every B, magnitudes off their start."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in twin.named_parameters():
            if "lora_B" in name and "vision" not in name:
                weight += 0.1 * torch.randn(weight.shape, generator=generator)
            if "magnitude" in name:
                weight *= torch.exp(0.3 * torch.randn(weight.shape, generator=generator))
    return twin.eval()


def written_by_peft(made, directory, **options):
    """A random adapter that PEFT made and wrote; returns PEFT's model."""
    options = dict(r=4, lora_alpha=6, target_modules="all-linear", lora_dropout=0.1) | options
    twin = randomised(get_peft_model(live(made), LoraConfig(task_type="CAUSAL_LM", **options)))
    twin.save_pretrained(directory, save_embedding_layers=False)
    return twin


def attach(made, directory):
    return jaxtune.load_adapter(made.model, made.variables, directory)
