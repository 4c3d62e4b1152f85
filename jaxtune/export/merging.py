"""Merges adapters into plain weights, from plain or quantised bases, and measures the effect."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxtune import quant, sharding, tree
from jaxtune.adapters import lora
from jaxtune.checkpoint.dtypes import AUTO
from jaxtune.checkpoint.load import load
from jaxtune.checkpoint.origin import Origin
from jaxtune.checkpoint.save import INTO, described_origin
from jaxtune.display.errors import UserError
from jaxtune.export.distance import Distance, distance
from jaxtune.models.paligemma import Model
from jaxtune.quant.precision import AUTO as EXACT


def merged(
    model: Model, variables: dict, into: str, dtype: DTypeLike = AUTO, *, take: bool = False
) -> dict:
    """Merges the adapters of a model, as `save_merged(…, into=…)` does.

    Args:
      model: The model; its origin supplies the "original" weights.
      variables: Its variables, with or without adapters.
      into: What replaces quantised weights: "original" for the full-precision weights of the
        model's origin, or "dequantised" for the values of the codes.
      dtype: Data type of the result; "auto" takes for each leaf that in which the model's origin
        stores it.
      take: Empties `variables`. Unless they are referenced elsewhere, the memory of each leaf is
        then freed as soon as its merged form exists.

    Returns:
      Plain variables without adapters.
    """
    if into not in INTO:
        raise UserError(f"into {into!r}: expected one of {', '.join(INTO)}")
    base, adapters = quant.by_path(variables["params"]), lora.adapters(variables)
    if take:
        variables.clear()
    if into == "original" and any(map(quant.is_quantized, base.values())):
        place = Origin.of(model).path
        full = quant.by_path(load(place, "auto", mesh=sharding.mesh_under(base))[1]["params"])
        base |= {path: full[path] for path, leaf in base.items() if quant.is_quantized(leaf)}
    with (origin := described_origin(model)).stored:
        dtypes = origin.written(dtype, model, base)
    whole = {}
    for path in list(base):
        leaf = base.pop(path)
        dtype = dtypes[path]
        adapted = path in adapters
        whole[path] = lora.merged(leaf, adapters[path], dtype) if adapted else leaf.astype(dtype)
    return {"params": tree.unflatten(whole)}


def differences(
    model: Model,
    variables: Mapping,
    tokens: jax.Array,  # int32[B, T]
    dtype: DTypeLike = AUTO,
) -> dict[str, Distance]:
    """Measures how far merging moves the predictions of a model on a quantised base.

    The adapter was trained on the dequantised weights. Merged into these, predictions change only
    by the rounding to `dtype`. Merged into the original weights, they lose the quantisation error
    that the adapter was trained with. One merged model is in memory at a time.

    Args:
      model: The model.
      variables: Its variables, with adapters on quantised weights.
      tokens: Token ids to compare on.
      dtype: Data type of the merged weights.

    Returns:
      The distance from the unmerged model, for each value of `into`.
    """
    apply = jax.jit(model.clone(precision=EXACT).apply)
    reference = apply(variables, jnp.asarray(tokens))
    return {
        into: distance(reference, apply(merged(model, variables, into, dtype), jnp.asarray(tokens)))
        for into in INTO
    }
