"""Tuned models to export, and ways to damage the files that were written of them."""

import json
import os

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from jaxtune import tree
from jaxtune.adapters import lora
from jaxtune.assembly.assemble import Assembly
from jaxtune.config import load as configs
from jaxtune.export.tuned import Tuned
from jaxtune.export.verify import LIMITS

FLOAT32 = LIMITS["float32"]


def tuned(directory, adapted=True, **changes) -> Tuned:
    """A base with adapters that do something, whatever a run of it would have learnt."""
    sections = {"model": {"path": str(directory)}, "data": {"source": "rows.jsonl"}} | changes
    config = configs.parse(sections)
    assembly = Assembly(config, directory, "2026-11-21")
    model, variables = assembly.model()

    def learnt(adapter, number):
        key = jax.random.fold_in(jax.random.key(1), number)
        b = 0.1 * jax.random.normal(key, adapter.b.shape)
        return adapter.replace(b=jax.device_put(b, adapter.b.sharding))

    made = lora.adapters(variables)
    made = {path: learnt(each, number) for number, (path, each) in enumerate(made.items())}
    variables |= {"lora": tree.unflatten(made)} if made else {}
    return Tuned(assembly, model, variables, step=7)


def names(directory):
    return sorted(each.name for each in directory.iterdir())


def damaged(file, change):
    """Edit a file of tensors."""
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


def turned(tensors, name):
    """A matrix that somebody wrote by columns, under the right shape."""
    [key] = [key for key in tensors if name in key]
    tensors[key] = np.ascontiguousarray(tensors[key].T).reshape(tensors[key].shape)


def without(tensors, part):
    for key in [key for key in tensors if part in key]:
        del tensors[key]


def nothing(tensors):
    for key in tensors:
        tensors[key] = np.zeros_like(tensors[key])


def alpha(directory):
    file = directory / "adapter_config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"lora_alpha": 2 * content["lora_alpha"]}))


ADAPTER = {
    "transposed": lambda d: damaged(
        d / "adapter_model.safetensors", lambda t: turned(t, "layers.1.self_attn.q_proj.lora_A")
    ),
    "alpha": alpha,
    "missing": lambda d: damaged(
        d / "adapter_model.safetensors", lambda t: without(t, "layers.1.")
    ),
    "zeros": lambda d: damaged(d / "adapter_model.safetensors", nothing),
    "truncated": lambda d: os.truncate(d / "adapter_model.safetensors", 9000),
}

MERGED = {
    "transposed": lambda d: damaged(
        d / "model.safetensors", lambda t: turned(t, "layers.1.self_attn.k_proj.weight")
    ),
    "missing": lambda d: damaged(d / "model.safetensors", lambda t: without(t, "layers.1.mlp")),
    "zeros": lambda d: damaged(d / "model.safetensors", nothing),
    "truncated": lambda d: os.truncate(d / "model.safetensors", 9000),
}
