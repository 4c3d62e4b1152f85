"""Places batches on the devices of a mesh."""

from dataclasses import dataclass
from functools import cached_property

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxtune import sharding
from jaxtune.data.batches import Batch


@dataclass(frozen=True)
class Placer:
    """Places this process's share of a batch on the devices of a mesh."""

    mesh: Mesh
    rows: int  # rows of a micro-batch, over all processes
    packing: bool

    @cached_property
    def sharding(self) -> NamedSharding:
        """Sharding of a micro-batch's rows; replicated if their number cannot be divided evenly."""
        return NamedSharding(self.mesh, sharding.fitted(sharding.ROWS, (self.rows,), self.mesh))

    @property
    def divided(self) -> bool:
        """Whether rows are divided over the `data` and `fsdp` axes, or these have size 1."""
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"] == 1 or any(self.sharding.spec)

    @property
    def share(self) -> tuple[int, int]:
        """Part of the rows that this process's devices take, as (index, number of parts)."""
        places = self.sharding.addressable_devices_indices_map((self.rows,)).values()
        starts, stops = zip(*(where[0].indices(self.rows)[:2] for where in places), strict=True)
        size = max(stops) - min(starts)
        return min(starts) // size, self.rows // size

    def __call__(self, batch: Batch, *, parts: bool) -> Batch:
        """Returns the batch on the devices.

        Leaves are [A, B, …], with A micro-batches. Without `parts`, only the first micro-batch is
        placed, as [B, …].
        """
        # Positions, and segments without packing, are left for the step to derive: more attention
        # kernels apply to positions that are known to be counted from 0.
        batch = batch.replace(positions=None, segments=batch.segments if self.packing else None)
        if not parts:
            batch = jax.tree.map(lambda leaf: leaf[0], batch)
        spec = PartitionSpec(None, *self.sharding.spec) if parts else self.sharding.spec
        where = NamedSharding(self.mesh, spec)
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(where, leaf), batch)
