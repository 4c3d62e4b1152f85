"""Puts batches on the devices of a mesh."""

from dataclasses import dataclass
from functools import cached_property

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxtune import sharding
from jaxtune.data.batches import Batch


@dataclass(frozen=True)
class Placer:
    """Puts this process's share of a batch on the devices of a mesh."""

    mesh: Mesh
    rows: int  # of a micro-batch, all processes together
    packing: bool

    @cached_property
    def sharding(self) -> NamedSharding:
        """That of a micro-batch's rows; on every device whole where they cannot be divided."""
        return NamedSharding(self.mesh, sharding.fitted(sharding.ROWS, (self.rows,), self.mesh))

    @property
    def divided(self) -> bool:
        """Whether devices share a micro-batch's rows, as many as should."""
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"] == 1 or any(self.sharding.spec)

    @property
    def share(self) -> tuple[int, int]:
        """Which part of the rows this process's devices take, and of how many parts."""
        places = self.sharding.addressable_devices_indices_map((self.rows,)).values()
        starts, stops = zip(*(where[0].indices(self.rows)[:2] for where in places), strict=True)
        size = max(stops) - min(starts)
        return min(starts) // size, self.rows // size

    def __call__(self, batch: Batch, *, parts: bool) -> Batch:
        """The batch on the devices: [A, B, …], or without `parts` [B, …]."""
        # Counted and told apart by the step itself, positions leave more kernels a choice.
        batch = batch.replace(positions=None, segments=batch.segments if self.packing else None)
        if not parts:
            batch = jax.tree.map(lambda leaf: leaf[0], batch)
        spec = PartitionSpec(None, *self.sharding.spec) if parts else self.sharding.spec
        where = NamedSharding(self.mesh, spec)
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(where, leaf), batch)
