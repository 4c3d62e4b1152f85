"""Reads an adapter that PEFT or jaxtune wrote, and attaches it to the variables of its model."""

import difflib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jaxtune import tree
from jaxtune.checkpoint.formats.safetensors import Safetensors
from jaxtune.checkpoint.formats.tensors import CheckpointError
from jaxtune.checkpoint.hub import locate
from jaxtune.checkpoint.load import leaf_shapes, read_config
from jaxtune.checkpoint.origin import Origin
from jaxtune.checkpoint.peft import adapter_config, stacking
from jaxtune.checkpoint.peft.base import params_of, refuse_other_base
from jaxtune.checkpoint.peft.fingerprint import Fingerprint
from jaxtune.checkpoint.peft.stacking import Adapters, Linears, Modules
from jaxtune.families import names
from jaxtune.models.paligemma import Model

REPORT = "export.json"  # what was measured when it was exported, beside its files


def load_adapter(
    model: Model, variables: Mapping, directory: str | os.PathLike, *, any_base: bool = False
) -> dict:
    """Variables with an adapter that PEFT or `save_adapter` wrote, from a directory or Hub repo.

    It must be one for this model; one of ours must have been trained beside these very weights,
    unless `any_base` is set. Layers without an adapter get one that does nothing.
    """
    if variables.get("lora"):
        raise CheckpointError(
            "the variables hold adapters already: merge them first (jaxtune.merge), or give"
            " variables without"
        )
    params = params_of(variables)
    family = read_config(Origin.of(model).path)[1]
    source = locate(directory)
    settings = adapter_config.Settings.read(source)
    _refuse_changed(source)
    with Safetensors.open(_weights(source)) as stored:
        found = _without_towers(stacking.read_pairs(stored, settings), family.other)
        metadata = stored.metadata
    table = names.choose(family.tables, [f"{module}.weight" for module in found])
    modules = stacking.linears(table, leaf_shapes(model))
    if problems := list(_misfits(found, modules, settings)):
        title = f"{source}{settings.base} does not fit the model from {model.origin}:"
        raise CheckpointError(adapter_config.listed(title, problems))
    if not any_base and (noted := Fingerprint.noted(metadata)):
        refuse_other_base(noted, model, params, f"{source}{settings.base}")
    adapters = {
        path: stacking.stacked(parts, params[path], settings)
        for path, parts in stacking.by_path(found, modules, stacking.ranks_noted(metadata)).items()
    }
    _refuse_idle(adapters, params, source)
    return {**variables, "lora": tree.unflatten(adapters)}


def _weights(directory: Path) -> Path:
    """The file PEFT reads; without it the directory, which tells what it holds instead."""
    file = directory / adapter_config.WEIGHTS_NAME
    return file if file.is_file() else directory


def _without_towers(found: Modules, other: Sequence[str]) -> Modules:
    """Leave out what does nothing beside towers we lack, as training on text alone leaves it."""
    idle = {name for name in names.matching(other, found) if not found[name].b.any()}
    return {name: adapter for name, adapter in found.items() if name not in idle}


def _misfits(found: Modules, modules: Linears, settings: adapter_config.Settings) -> Iterator[str]:
    for module, adapter in found.items():
        if module not in modules:
            near = difflib.get_close_matches(module, modules, n=1, cutoff=0.5)
            hint = f" (nearest: {near[0]})" if near else ""
            yield f"  unknown  {module}: the model has no such linear map{hint}"
            continue
        parts = {"a": adapter.a.shape[1:], "b": adapter.b.shape[:1]}
        if adapter.magnitude is not None:
            parts["magnitude"] = adapter.magnitude.shape
        outside, inside = modules[module][0].shape
        for part, (size,) in parts.items():
            if size != (wanted := inside if part == "a" else outside):
                yield f"  shape    {module}: {stacking.PARTS[part]} has {size}, the model {wanted}"
    for module in modules:
        if module not in found and settings.targeted(module):
            yield f"  missing  {module}: the config's target_modules promise it"


def _refuse_changed(source: Path) -> None:
    """Stop at files that are not those which were verified when this adapter was exported."""
    report = source / REPORT
    if not report.is_file():
        return
    known = json.loads(report.read_bytes())["files"]
    for name in (adapter_config.CONFIG_NAME, adapter_config.WEIGHTS_NAME):
        with (source / name).open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        if name in known and found != known[name]["sha256"]:
            raise CheckpointError(
                f"{source / name} is not the file that was verified when this adapter was exported:"
                f" its SHA-256 is {found}, and {report} says {known[name]['sha256']}. Export it"
                f" anew, or remove {REPORT} if it was changed on purpose"
            )


def _refuse_idle(adapters: Adapters, params: Mapping[str, Any], source: Path) -> None:
    """Stop at an adapter that changes nothing: it was never trained, or is not what was meant."""
    for path, adapter in adapters.items():
        if (adapter.scale[..., None, None] * adapter.b).any():
            return
        if adapter.magnitude is not None:
            norms = stacking.column_norms(params[path])
            if not jnp.allclose(adapter.magnitude, norms, rtol=1e-3, atol=0):
                return
    raise CheckpointError(
        f"{source}: every lora_B is zero, so that this adapter would change nothing: it was saved"
        " before any training"
    )
