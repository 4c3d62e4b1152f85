"""Adapters merged into plain weights, whatever their base is held as, and what that changes."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxtune import quant, tree
from jaxtune.adapters import lora
from jaxtune.checkpoint.load import load
from jaxtune.checkpoint.origin import Origin
from jaxtune.checkpoint.save import INTO
from jaxtune.export.distance import Distance, distance
from jaxtune.models.paligemma import Model


def merged(
    model: Model, variables: dict, into: str, dtype: Any = "float16", *, take: bool = False
) -> dict:
    """Plain variables of one dtype, as `save_merged(…, into=…)` writes them.

    With `take`, the variables are emptied: where nobody else holds them, each leaf's memory is free
    once its merged form is there.
    """
    if into not in INTO:
        raise ValueError(f"into {into!r}: expected one of {', '.join(INTO)}")
    base, adapters = quant.by_path(variables["params"]), lora.adapters(variables)
    if take:
        variables.clear()
    if into == "original" and any(map(quant.is_quantized, base.values())):
        full = quant.by_path(load(Origin.of(model).path, "auto")[1]["params"])
        base |= {path: full[path] for path, leaf in base.items() if quant.is_quantized(leaf)}
    whole = {}
    for path in list(base):
        leaf = base.pop(path)
        with_it = path in adapters
        whole[path] = lora.merged(leaf, adapters[path], dtype) if with_it else leaf.astype(dtype)
    return {"params": tree.unflatten(whole)}


def differences(
    model: Model,
    variables: Mapping,
    tokens: jax.Array,  # int32[B, T]
    dtype: Any = "float16",
) -> dict[str, Distance]:
    """How far merging moves the predictions of a model on a quantised base, by what it goes into.

    The adapter was trained on what the codes stand for: merged into that, predictions stay as they
    are up to `dtype`'s rounding; merged into the original weights, they lose the error of the codes
    with which the adapter was trained. One merged model is in memory at a time.
    """
    apply = jax.jit(model.apply)
    reference = apply(variables, jnp.asarray(tokens))
    return {
        into: distance(reference, apply(merged(model, variables, into, dtype), jnp.asarray(tokens)))
        for into in INTO
    }
