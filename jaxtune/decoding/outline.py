"""The programs of decoding, traced from shapes: the prefill of a batch of prompts, and the loop."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxtune import sharding, tree
from jaxtune.adapters import lora
from jaxtune.data.batches import fitting, sizes
from jaxtune.decoding.generate import advanced, begun
from jaxtune.decoding.requests import LONGEST, PaddedPrompts, padded_sizes, power_of_two
from jaxtune.decoding.sampling import Sampling
from jaxtune.models.paligemma import Model


@dataclass(frozen=True)
class Batch:
    """Sizes of a batch of answers."""

    rows: int  # prompts
    longest: int  # tokens of the longest prompt, picture tokens included
    pictures: int  # most pictures of a prompt
    new: int  # limit on the tokens of an answer


def traced_prefill(
    model: Model, variables: Mapping, mesh: Mesh, batch: Batch, sampling: Sampling, stops: int
) -> Any:
    """Traces the program that fills the cache with prompts, as `generate.begin` calls it.

    Args:
      model: The model.
      variables: Its variables, as shapes with their shardings.
      mesh: Mesh of these.
      batch: Sizes of the batch.
      sampling: Sampling parameters.
      stops: Number of stop tokens.

    Returns:
      What `jax.jit(…).trace` returns; its `out_info` is the state of the loop.
    """
    prompts = _prompts(model, mesh, batch)
    rows = prompts.tokens.shape[0]
    array = jax.ShapeDtypeStruct  # of the host, which has no sharding
    return begun.trace(
        model,
        fitting(batch.new, sizes(LONGEST, 16)),
        with_norms(variables),
        prompts,
        array((rows,), np.int32),
        array((stops,), np.int32),
        jax.tree.map(lambda value: array((), np.float32), sampling),
        array((), np.uint32),  # seed
        array((rows, 2), np.uint32),  # identities
    )


def traced_loop(model: Model, variables: Mapping, under_way: Any) -> Any:
    """Traces the loop that decodes all answers, as `generate.advance` calls it.

    `under_way` is the state that the prefill returns, as shapes with their shardings.
    """
    until = jax.ShapeDtypeStruct((), np.int32)
    return advanced.trace(model, with_norms(variables), under_way, until)


def with_norms(variables: Mapping) -> Mapping:
    """Returns shapes of variables with those that `lora.with_norms` adds to DoRA adapters."""
    found = lora.adapters(variables)
    if not any(each.magnitude is not None for each in found.values()):
        return variables
    ready = {path: each.replace(norms=each.magnitude) for path, each in found.items()}
    return {**variables, "lora": tree.unflatten(ready)}


def _prompts(model: Model, mesh: Mesh, batch: Batch) -> PaddedPrompts:
    """Returns the shapes to which `requests.padded` pads prompts, with their shardings."""
    wants = model.pictures
    fixed = batch.pictures * wants.tokens if wants else 0
    rows, width = padded_sizes(batch.rows, batch.longest, fixed)
    shapes = {
        "tokens": ((rows, width), np.int32),
        "length": ((rows,), np.int32),
        "images": None,
    }
    if batch.pictures:
        depth = power_of_two(batch.pictures)
        shapes["images"] = ((rows, depth, wants.side, wants.side, 3), np.float32)
    where = NamedSharding(mesh, sharding.fitted(sharding.ROWS, (rows,), mesh))
    arrays = {
        name: each and jax.ShapeDtypeStruct(*each, sharding=where) for name, each in shapes.items()
    }
    return PaddedPrompts(**arrays)
