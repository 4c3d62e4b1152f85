"""Embeddings that stay in the memory of the host: each step takes the vectors of its tokens along.

An embedding that does not train and is not the head is only looked up in, and a batch has few of
its tokens. Where it is a NumPy array among the variables, it stays there. Of shapes, it is the one
without a sharding.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxtune import sharding
from jaxtune.models.tables import Extract

Change = Callable[[Any], Any]  # of an embedding [V, D]


def moved(variables: Mapping) -> Mapping:
    """Returns variables, or shapes of these, whose embedding stays on the host.

    They are returned unchanged if the embedding is the head as well, or is not among them.
    """

    def to_host(table: Any) -> Any:
        if isinstance(table, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(table.shape, table.dtype)
        return jax.device_get(table)

    return _changed(variables, to_host)


def extracted(variables: Mapping, tokens: Any) -> Mapping:
    """Returns variables with the vectors of a batch's tokens in place of an embedding on the host.

    Both may be shapes. Inside of a program, where tokens have no values, an embedding is taken to
    the device whole.
    """
    if isinstance(tokens, jax.core.Tracer):
        return variables
    return _changed(variables, lambda table: Extract.of(table, _values(tokens)), _stays)


def returned(variables: Mapping) -> Mapping:
    """Returns variables, or shapes of these, with an embedding on the host back on the devices."""
    mesh = sharding.mesh_under(variables)

    def to_devices(table: Any) -> Any:
        where = mesh and sharding.shardings({"embed/w": table.shape}, mesh)["embed/w"]
        if isinstance(table, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(table.shape, table.dtype, sharding=where)
        return jax.device_put(table, where)

    return _changed(variables, to_devices, _stays)


def stays(variables: Mapping) -> bool:
    """Returns whether an embedding of variables, or of shapes of these, stays on the host."""
    return extracted(variables, jax.ShapeDtypeStruct((1,), np.int32)) is not variables


def _stays(table: Any) -> bool:
    if isinstance(table, jax.ShapeDtypeStruct):
        return table.sharding is None
    return isinstance(table, np.ndarray)


def _changed(part: Any, change: Change, of: Callable[[Any], bool] = lambda _: True) -> Any:
    """Returns a part of variables with a change of an embedding beside a head; itself without."""
    if not isinstance(part, Mapping):
        return part
    if "embed" in part and "head" in part:
        table = part["embed"]["w"]
        if table is None or not of(table):
            return part
        return {**part, "embed": {**part["embed"], "w": change(table)}}
    made = {name: _changed(each, change, of) for name, each in part.items()}
    return made if any(made[name] is not part[name] for name in made) else part


def _values(tokens: Any) -> Any:
    return tokens if isinstance(tokens, jax.ShapeDtypeStruct) else np.asarray(tokens)
