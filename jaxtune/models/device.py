"""The device that a call is compiled for, and each device's share of a call."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxtune.sharding import CAPABILITY, mesh_of

MEMBERS = "members"  # name of the axis over which the programs of populations are vectorised
EXPLICIT = "the mesh has explicit axes; make it with axis_types=AxisType.Auto"


def platform(q: jax.Array) -> str:
    """Returns the platform that the call is compiled for."""
    # The mesh comes before the default backend: a step can be compiled for another machine.
    device = mesh_of(q).abstract_device
    return device.platform if device else jax.default_backend()


def explicit(q: jax.Array) -> bool:
    """Returns whether the mesh of an array has explicit axes, which `spread` cannot split."""
    return AxisType.Explicit in mesh_of(q).axis_types


def vectorised() -> bool:
    """Returns whether the call is traced for the members of a population at once."""
    try:
        jax.lax.axis_index(MEMBERS)
    except NameError:  # JAX knows no such axis here
        return False
    return True


def capability(q: jax.Array) -> float:
    """Returns the compute capability of the GPU that the call is compiled for; 0 of other devices.

    Where the GPU is not known, it is 8.0, the lowest that is supported.
    """
    device = mesh_of(q).abstract_device
    if device is not None and device.device_kind in CAPABILITY:
        return _number(CAPABILITY[device.device_kind])
    return at_hand() if jax.default_backend() == "gpu" else 8.0


def at_hand() -> float:
    """Returns the compute capability of this machine's GPU; 0 of other devices."""
    return _number(getattr(jax.local_devices()[0], "compute_capability", None))


def _number(capability: str | None) -> float:
    return float(capability) if str(capability).replace(".", "").isdigit() else 0.0


def by_window(run: Callable, windows, kind: jax.Array, length: int, *arrays) -> jax.Array:
    """Calls `run(window, *arrays)` with the window of a layer kind.

    Kernels need the window while tracing, but the layer scan has only the array `kind`, so
    `jax.lax.switch` selects among one branch per distinct window. Windows of at least `length`
    tokens count as None.
    """
    windows = [None if w is None or w >= length else w for w in windows]
    distinct = list(dict.fromkeys(windows))
    if len(distinct) == 1:
        return run(distinct[0], *arrays)
    branch = jnp.asarray([distinct.index(w) for w in windows], jnp.int32)[kind]
    return jax.lax.switch(branch, [partial(run, w) for w in distinct], *arrays)


def spread(run: Callable, q, k, v, rows: Any, kind: jax.Array) -> jax.Array:
    """Calls `run` on each device's shard of batch and heads: XLA cannot partition a kernel.

    `rows` is a tree of arrays whose first axis is the batch, or None, and `kind` the same anywhere.
    """
    mesh = mesh_of(q)
    axes = zip(mesh.axis_names, mesh.axis_types, strict=True)
    automatic = {name: mesh.shape[name] for name, of in axes if of == AxisType.Auto}
    if math.prod(automatic.values()) == 1:
        return run(q, k, v, rows, kind)
    batch = _dividing(automatic, ("data", "fsdp"), q.shape[0])
    heads = P(batch, None, _dividing(automatic, ("tensor",), k.shape[2]))
    return jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(heads, heads, heads, P(batch), P()),
        out_specs=heads,
        axis_names=set(automatic),
        check_vma=False,  # a Pallas call does not declare which mesh axes its result varies over
    )(q, k, v, rows, kind)


def _dividing(sizes: dict[str, int], names: tuple[str, ...], count: int) -> tuple[str, ...]:
    """Returns the axes of `names` that the mesh has and whose sizes together divide `count`."""
    taken = ()
    for name in names:
        if name in sizes and count % math.prod(sizes[each] for each in (*taken, name)) == 0:
            taken += (name,)
    return taken


def lengthen(x: jax.Array, length: int, value: int) -> jax.Array:  # [B, T, ...]
    """Returns an array whose rows are filled up with a value to a length."""
    widths = [(0, 0), (0, length - x.shape[1])] + [(0, 0)] * (x.ndim - 2)
    return jnp.pad(x, widths, constant_values=value)
