"""Loads an adapter that PEFT or jaxtune wrote, and adds it to the variables of its model."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune import quant, tree
from jaxtune.checkpoint.formats.safetensors import Safetensors
from jaxtune.checkpoint.formats.tensors import CheckpointError
from jaxtune.checkpoint.load import leaf_shapes, read_config
from jaxtune.checkpoint.origin import Origin
from jaxtune.checkpoint.peft import adapter_config, stacking
from jaxtune.checkpoint.peft.base import params_of, refuse_other_base
from jaxtune.checkpoint.peft.fingerprint import Fingerprint
from jaxtune.checkpoint.peft.stacking import Adapters, Linears, Modules
from jaxtune.checkpoint.report import REPORT, read_report
from jaxtune.checkpoint.sources import locate
from jaxtune.families import names
from jaxtune.models.paligemma import Model


def load_adapter(
    model: Model, variables: Mapping, directory: str | os.PathLike, *, any_base: bool = False
) -> dict:
    """Loads an adapter that PEFT or `save_adapter` wrote and adds it to the variables.

    Args:
      model: the model that `variables` belong to; the adapter must fit it.
      variables: the model's variables, without adapters.
      directory: directory or Hub repository of the adapter.
      any_base: whether to accept an adapter that jaxtune trained on other weights than those of
        the model's origin, which is an error by default.

    Returns:
      The variables with the adapters in `"lora"`. Where a stacked weight has adapters in some
      layers only, the other layers get an adapter that has no effect.
    """
    if variables.get("lora"):
        raise CheckpointError(
            "the variables already have adapters: merge them first (jaxtune.merge), or pass"
            " variables without adapters"
        )
    params = params_of(variables)
    source = locate(directory)
    parts, settings, metadata = _read(model, source)
    if not any_base and (noted := Fingerprint.noted(metadata)):
        refuse_other_base(noted, model, params, f"{source}{settings.base}")
    adapters = {
        path: stacking.stacked(each, params[path], settings) for path, each in parts.items()
    }
    _refuse_idle(adapters, params, source)
    return {**variables, "lora": tree.unflatten(adapters)}


def outline_adapter(model: Model, variables: Mapping, directory: str | os.PathLike) -> dict:
    """Returns the shapes of the adapters that `load_adapter` would add, as its `"lora"`.

    The variables may be shapes. The weights of the base are not read.
    """
    parts, settings, _ = _read(model, locate(directory))
    params = quant.by_path(variables["params"])
    shapes = {path: stacking.shapes(each, params[path], settings) for path, each in parts.items()}
    return tree.unflatten(shapes)


def _read(
    model: Model, source: Path
) -> tuple[stacking.ByPath, adapter_config.Settings, Mapping[str, str]]:
    """Reads an adapter for a model; returns its parts by path, its config and its metadata."""
    family = read_config(Origin.of(model).path)[1]
    settings = adapter_config.Settings.read(source)
    _refuse_changed(source)
    with Safetensors.open(_weights(source)) as stored:
        found = _without_towers(stacking.read_pairs(stored, settings), family.other)
        metadata = stored.metadata
    _refuse_broken(found, source)
    table = names.choose(family.tables, [f"{module}.weight" for module in found])
    modules = stacking.linears(table, leaf_shapes(model))
    if problems := list(_misfits(found, modules, settings)):
        title = f"{source}{settings.base} does not fit the model from {model.origin}:"
        raise CheckpointError(names.listed(title, problems))
    parts = stacking.by_path(found, modules, stacking.ranks_noted(metadata))
    return parts, settings, metadata


def _refuse_broken(found: Modules, source: Path) -> None:
    """Raises if an adapter holds NaN or infinity, as one saved by a run that diverged does."""
    broken = [
        module
        for module, adapter in found.items()
        if not all(np.isfinite(part).all() for part in jax.tree.leaves(vars(adapter)))
    ]
    if broken:
        raise CheckpointError(
            f"{source}: {len(broken)} of {len(found)} adapters contain NaN or infinity, such as "
            f"that of {broken[0]}: the run that saved them diverged; use an earlier checkpoint"
        )


def _weights(directory: Path) -> Path:
    """Returns PEFT's weight file, or the directory without it, whose error says what it holds."""
    file = directory / adapter_config.WEIGHTS_NAME
    return file if file.is_file() else directory


def _without_towers(found: Modules, other: Sequence[str]) -> Modules:
    """Drops adapters of modules that our model lacks (`other`) if they have no effect.

    PEFT leaves such adapters, with `b` still zero, on towers that training on text never uses.
    """
    idle = {name for name in names.matching(other, found) if not found[name].b.any()}
    return {name: adapter for name, adapter in found.items() if name not in idle}


def _misfits(found: Modules, modules: Linears, settings: adapter_config.Settings) -> Iterator[str]:
    unknown = [module for module in found if module not in modules]
    for number, module in enumerate(unknown):
        hint = names.near(module, modules) if number < names.MOST_LISTED else ""
        yield f"  unknown  {module}: the model has no such linear map{hint}"
    for module, adapter in found.items():
        if module not in modules:
            continue
        parts = {"a": adapter.a.shape[1:], "b": adapter.b.shape[:1]}
        if adapter.magnitude is not None:
            parts["magnitude"] = adapter.magnitude.shape
        outside, inside = modules[module][0].shape
        for part, (size,) in parts.items():
            if size != (wanted := inside if part == "a" else outside):
                name = stacking.PARTS[part]
                yield f"  shape    {module}: {name} has size {size}, the model expects {wanted}"
    for module in modules:
        if module not in found and settings.targeted(module):
            yield f"  missing  {module}: the config's target_modules select it"


def _refuse_changed(source: Path) -> None:
    """Raises if the adapter's files differ from those that were verified when it was exported."""
    known = read_report(source).get("files", {})
    for name in (adapter_config.CONFIG_NAME, adapter_config.WEIGHTS_NAME):
        if name not in known or not (source / name).is_file():
            continue
        with (source / name).open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        if found != known[name]["sha256"]:
            raise CheckpointError(
                f"{source / name} is not the file that was verified when this adapter was exported:"
                f" its SHA-256 is {found}, but {REPORT} records {known[name]['sha256']}. Export it"
                f" again, or remove {REPORT} if the file was changed on purpose"
            )


def _refuse_idle(adapters: Adapters, params: Mapping[str, Any], source: Path) -> None:
    """Raises if an adapter has no effect: it was never trained, or the wrong one was given."""
    for path, adapter in adapters.items():
        if (adapter.scale[..., None, None] * adapter.b).any():
            return
        if adapter.magnitude is not None:
            norms = stacking.column_norms(params[path])
            if not jnp.allclose(adapter.magnitude, norms, rtol=1e-3, atol=0):
                return
    raise CheckpointError(
        f"{source}: every lora_B is zero, so this adapter has no effect: it was saved before any"
        " training"
    )
