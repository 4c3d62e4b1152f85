"""Places batches on the devices of a mesh."""

import math
from dataclasses import dataclass
from functools import cached_property

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxtune import sharding
from jaxtune.data.batches import Batch
from jaxtune.display.errors import UserError


@dataclass(frozen=True)
class Placer:
    """Places this process's share of a batch on the devices of a mesh."""

    mesh: Mesh
    rows: int  # rows of a micro-batch, over all processes
    packing: bool

    @cached_property
    def sharding(self) -> NamedSharding:
        """Sharding of a micro-batch's rows, whose number the mesh divides."""
        return NamedSharding(self.mesh, sharding.fitted(sharding.ROWS, (self.rows,), self.mesh))

    @property
    def share(self) -> tuple[int, int]:
        """Part of the rows that this process's devices take, as (index, number of parts)."""
        places = self.sharding.addressable_devices_indices_map((self.rows,)).values()
        if not places:  # the devices are only described
            return 0, 1
        starts, stops = zip(*(where[0].indices(self.rows)[:2] for where in places), strict=True)
        size = max(stops) - min(starts)
        return min(starts) // size, self.rows // size

    def __call__(self, batch: Batch, *, parts: bool, members: bool = False) -> Batch:
        """Returns the batch on the devices.

        Leaves are [A, B, …], with A micro-batches. Without `parts`, only the first micro-batch is
        placed, as [B, …]. With `members`, leaves are [M, A, B, …], a batch for each of M members.
        """
        batch, where = self._chosen(batch, parts, members)
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(where, leaf), batch)

    def described(self, batch: Batch, *, parts: bool, members: bool = False) -> Batch:
        """Returns the shapes and shardings of what the placer makes of a batch."""
        batch, where = self._chosen(batch, parts, members)
        axis = parts + members

        def shape(leaf: np.ndarray) -> jax.ShapeDtypeStruct:
            whole = (*leaf.shape[:axis], self.rows, *leaf.shape[axis + 1 :])
            return jax.ShapeDtypeStruct(whole, leaf.dtype, sharding=where)

        return jax.tree.map(shape, batch)

    def _chosen(self, batch: Batch, parts: bool, members: bool) -> tuple[Batch, NamedSharding]:
        """Returns the leaves of a batch that a step takes, and their sharding."""
        # Positions, and segments without packing, are left for the step to derive: more attention
        # kernels apply to positions that are known to be counted from 0.
        batch = batch.replace(positions=None, segments=batch.segments if self.packing else None)
        if not parts:
            batch = jax.tree.map(lambda leaf: leaf[0], batch)
        before = [None] * (parts + members)
        return batch, NamedSharding(self.mesh, PartitionSpec(*before, *self.sharding.spec))


def ways(mesh: Mesh) -> int:
    """Returns the number of parts that a mesh divides the rows of a batch into."""
    return math.prod(mesh.shape.get(axis, 1) for axis in ("data", "fsdp"))


def refuse_uneven(rows: int, parts: int, mesh: Mesh) -> None:
    """Raises ValueError unless a mesh divides the rows of each micro-batch evenly.

    If it did not, every device would have to compute all of the rows.

    Args:
      rows: Rows of a batch, `batch.rows`.
      parts: Micro-batches of a batch, `batch.accumulate`.
      mesh: Mesh with the axes "data", "fsdp" and "tensor".
    """
    among, each = ways(mesh), rows // parts
    if each % among == 0:
        return
    unit = among * parts
    below = [rows // unit * unit] if rows > unit else []
    choices = ["batch.rows to " + " or ".join(map(str, [*below, (rows // unit + 1) * unit]))]
    fewer = [count for count in range(1, parts) if rows % (count * among) == 0]
    choices += [f"batch.accumulate to {fewer[-1]}"] if fewer else []
    split = math.gcd(each, among)
    raise UserError(
        f"batch.rows={rows}"
        + (f" in {parts} micro-batches of {each}" if parts > 1 else "")
        + f" cannot be divided evenly over {among} devices (mesh data={mesh.shape['data']}, "
        f"fsdp={mesh.shape['fsdp']}), each of which would compute all rows: set "
        + ", or ".join(choices)
        + ", or the mesh with --config.mesh.data=1 "
        f"--config.mesh.fsdp={split} --config.mesh.tensor={mesh.size // split}"
    )
