"""Makes sure that a run fits the devices at hand, before it reads weights."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune import tree
from jaxtune.assembly.assemble import Assembly
from jaxtune.display.errors import UserError
from jaxtune.display.progress import Progress
from jaxtune.models import host
from jaxtune.runs.plan import change, report
from jaxtune.runs.plan.plan import Plan, Planner
from jaxtune.runs.plan.targets import Target, at_hand
from jaxtune.runs.rows import RunRows
from jaxtune.training.step import compiled_step
from jaxtune.workdir import agreement

MiB = 2**20


class DoesNotFit(UserError):
    """A run that would run out of device memory."""


def plan_ahead(assembly: Assembly, rows: RunRows, progress: Progress, done: int) -> Plan:
    """Compiles the programs of a run, which it then uses, and tries the largest batches.

    Args:
      assembly: The parts of the run.
      rows: Its rows.
      progress: Where the plan is reported.
      done: Steps that were done before.

    Returns:
      The plan. Raises DoesNotFit, with the changes that would make it fit, for a run that does not.
    """
    planner = Planner(assembly, rows, _least(at_hand()), progress, done)
    plan = planner.plan({})
    if plan.fits is False:
        refusal = report.refusal(plan, change.to_fit(planner))
        raise DoesNotFit(f"{refusal}\npass --no-plan to train all the same")
    for line in report.brief(plan):
        progress.say(line)
    if jax.local_devices()[0].memory_stats():  # an allocator that may run out; a CPU has none
        progress.draw("trying the largest batches")
        try_largest(assembly, rows, plan)
    return plan


def _least(target: Target) -> Target:
    """Returns the target with the lowest limit of all processes, so that they decide alike."""
    if target.limit_bytes is None:
        return target
    most = -agreement.highest(-(target.limit_bytes // MiB)) * MiB  # MiB, as it agrees on int32
    return replace(target, limit_bytes=most)


def try_largest(assembly: Assembly, rows: RunRows, plan: Plan) -> None:
    """Runs a training step on each of the largest batches, on zeros, and drops the results."""
    shapes = plan.shapes
    for shape in plan.outlook.largest:
        batch = assembly.placer(rows.loader.blank(shape), parts=True)
        state, frozen = zeros((shapes.start.shapes, shapes.start.frozen))
        given = (state, host.extracted(frozen, batch.tokens), batch, shapes.objective)
        jax.block_until_ready(compiled_step(shapes.model, shapes.optimizer, *given))


def zeros(shapes: Any) -> Any:
    """Returns arrays of zeros of described shapes, on the devices of their shardings.

    Those without a sharding are NumPy arrays.
    """
    placed = jax.tree.map(lambda leaf: leaf.sharding is not None, shapes)
    on_devices, on_host = tree.partition(shapes, placed)
    where = jax.tree.map(lambda leaf: leaf.sharding, on_devices)
    made = jax.jit(partial(jax.tree.map, _zero, on_devices), out_shardings=where)()
    return tree.combine(made, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), on_host))


def _zero(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.key(0), leaf.shape)
    return jnp.zeros(leaf.shape, leaf.dtype)
