"""Loads a checkpoint in the config's dtype and quantisation, and adds the config's adapters."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxtune import sharding, tree
from jaxtune.adapters import lora
from jaxtune.checkpoint.load import Described, load, outline
from jaxtune.checkpoint.peft.load_adapter import load_adapter, outline_adapter
from jaxtune.config import training_sections as sections
from jaxtune.config.fields import ConfigError
from jaxtune.config.training_sections import Trainable
from jaxtune.display.errors import UserError
from jaxtune.models import host
from jaxtune.models.paligemma import Model


def load_base(given: sections.Model, checkpoint: Path, mesh: Mesh) -> tuple[Model, dict]:
    """Loads a checkpoint's model and variables, with the settings of the section `model`."""
    model, variables = load(checkpoint, **_settings(given), mesh=mesh)
    return _computed(given, model), variables


def with_adapters(
    given: Trainable, model: Model, variables: dict, mesh: Mesh, seed: int
) -> tuple[Model, dict]:
    """Adds adapters if the config trains any: new ones, or those of an existing adapter.

    Args:
      given: Section `trainable`; with its `adapter` set, that adapter goes on training.
      model: The base model.
      variables: Variables of the base.
      mesh: Mesh that the adapters are sharded over.
      seed: Seed of the initial values of new adapters.

    Returns:
      The model and the variables with the adapters; the arguments themselves if `kind` is not
      "lora".
    """
    if given.kind == "lora" and given.adapter:
        return model, variables | _continued(given, model, variables, mesh)
    if given.kind == "lora":
        key = jax.random.key(seed)
        return model, variables | _adapted(given, mesh, variables["params"], key)
    return model, variables


def outline_base(given: sections.Model, checkpoint: Described, mesh: Mesh) -> tuple[Model, dict]:
    """Returns what `load_base` returns, with shapes in place of arrays; no weights are read."""
    model, variables = outline(checkpoint, **_settings(given), mesh=mesh)
    return _computed(given, model), variables


def with_embedding_on_host(frozen: dict, mesh: Mesh) -> dict:
    """Returns frozen leaves, or shapes of these, with the embedding in the memory of the host.

    The devices of the mesh may be described, and belong to hosts that are not at hand.

    Raises ConfigError if a step needs more of it than the vectors of its tokens.
    """
    moved = host.moved(frozen)
    if len({device.process_index for device in mesh.devices.flat}) > 1:
        reason = "the run has several processes, each of which reads other rows"
    elif not host.stays(moved):
        held = any(path.endswith("embed/w") for path in tree.flatten(frozen))
        does = "is also the output head" if held else "trains"
        reason = f"the embedding {does}, so that every step needs all of it"
    else:
        return moved
    raise ConfigError(
        f'model.embedding: found "host", but {reason}; expected "device", the default'
    )


def _computed(given: sections.Model, model: Model) -> Model:
    """Returns a model with the settings of a section that are not arguments of `load`."""
    return model.clone(remat=given.remat, deterministic=given.deterministic)


def _settings(given: sections.Model) -> dict[str, Any]:
    """Returns the settings of a section that are arguments of `load`."""
    names = ("dtype", "quant", "attention", "compute", "precision")
    return {name: getattr(given, name) for name in names}


def outline_adapters(
    given: Trainable, model: Model, variables: dict, mesh: Mesh
) -> tuple[Model, dict]:
    """Returns what `with_adapters` returns, with shapes in place of arrays."""
    if given.kind != "lora":
        return model, variables
    if given.adapter:
        made = {"lora": outline_adapter(model, variables, given.adapter)}
    else:
        key = jax.eval_shape(jax.random.key, 0)
        made = jax.eval_shape(partial(_adapted, given, mesh), variables["params"], key)
    return model, variables | sharding.described(made, sharding.of_state(made, mesh))


@partial(jax.jit, static_argnums=(0, 1))
def _adapted(given: Trainable, mesh: Mesh, params: dict, key: jax.Array) -> dict:
    """Creates new adapters, sharded over the mesh; also the weights if their init changes them."""
    made = lora.add_lora(
        {"params": params},
        given.rank,
        given.alpha,
        given.targets,
        key=key,
        dropout=given.dropout,
        variant=given.variant,
        init=given.init,
    )
    if given.init == "default":
        made = {"lora": made["lora"]}
    return jax.lax.with_sharding_constraint(made, sharding.of_state(made, mesh))


def _continued(given: Trainable, model: Model, variables: dict, mesh: Mesh) -> dict:
    """Loads existing adapters, sharded over the mesh; raises if the config contradicts them."""
    made = lora.adapters(load_adapter(model, variables, given.adapter))
    if problems := list(_disagreeing(given, variables, made)):
        raise UserError(
            "\n  ".join([f"the adapter {given.adapter} does not match the config:", *problems])
            + "\nSet these fields to the adapter's values, or omit them"
        )
    if _set(given, "dropout"):
        made = {
            path: each.replace(dropout=jax.numpy.full_like(each.scale, given.dropout))
            for path, each in made.items()
        }
    made = {"lora": tree.unflatten(made)}
    return jax.device_put(made, sharding.of_state(made, mesh))


def _set(given: Trainable, name: str) -> bool:
    """Returns whether a field differs from its default."""
    return getattr(given, name) != getattr(Trainable(), name)


def _disagreeing(given: Trainable, variables: dict, made: dict[str, lora.Lora]) -> Iterator[str]:
    """Yields a message per field that the config sets to another value than the adapter has."""
    new = partial(lora.add_lora, variables, targets=given.targets, key=jax.random.key(0))
    power = 0.5 if given.variant == "rslora" else 1
    theirs = {
        "targets": sorted(made),
        "rank": sorted({each.a.shape[-1] for each in made.values()}),
        "alpha": sorted({_alpha(each, power) for each in made.values()}),
        "variant": sorted({_kind(each.magnitude is not None) for each in made.values()}),
    }
    ours = {
        "targets": sorted(lora.adapters(jax.eval_shape(new))),
        "rank": [given.rank],
        "alpha": [given.alpha],
        "variant": [_kind(given.variant == "dora")],
    }
    for name in ours:
        if _set(given, name) and ours[name] != theirs[name]:
            sides = (", ".join(map(str, each[name])) for each in (ours, theirs))
            yield "trainable.{} is {}, but the adapter's is {}".format(name, *sides)


def _alpha(adapter: lora.Lora, power: float) -> float:
    """Returns alpha, recovered from the scale `alpha / rank ** power`."""
    return round(float(np.max(adapter.scale)) * adapter.a.shape[-1] ** power, 4)


def _kind(magnitude: bool) -> str:
    return "dora" if magnitude else "lora or rslora"
