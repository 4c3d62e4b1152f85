"""Keys and values of the tokens a model has seen, so that the next ones need not compute them.

Axes: L layers, B rows, S slots, K key heads, H head size, T new tokens.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxtune.models.layout import PADDING, Layout


@struct.dataclass
class CachedKV:
    """The keys and values of all layers; a row's tokens may have slots between them left empty."""

    k: jax.Array  # [L, B, S, K, H]
    v: jax.Array

    def put(self, layer: jax.Array, slot: jax.Array, k: jax.Array, v: jax.Array) -> "CachedKV":
        """With [B, T, K, H] more in one layer, from a slot on."""

        def into(held, new):
            start = (layer, 0, slot, 0, 0)
            return jax.lax.dynamic_update_slice(held, new[None].astype(held.dtype), start)

        return CachedKV(into(self.k, k), into(self.v, v))

    def of(self, layer: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:  # [B, S, K, H]
        """One layer's keys and values."""
        return self.k[layer].astype(dtype), self.v[layer].astype(dtype)


@struct.dataclass
class KVCache:
    """What is stored, and where its tokens stand."""

    stored: CachedKV
    layout: Layout  # [B, S], with PADDING for a segment where nothing is to be seen
    slot: jax.Array  # int32[], the first that is free in every row

    @classmethod
    def empty(cls, config: Any, rows: int, slots: int, dtype: Any) -> "KVCache":
        """Room for so many tokens of so many rows."""
        shape = (len(config.layers), rows, slots, config.kv_heads, config.head_size)
        # Two arrays, as both are given away and written over.
        stored = CachedKV(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
        nothing = jnp.full((rows, slots), PADDING, jnp.int32)
        layout = Layout(nothing, nothing, nothing, whole=False, counted=False)
        return cls(stored, layout, jnp.zeros((), jnp.int32))

    def noted(self, new: Layout) -> "KVCache":  # [B, T]
        """With tokens in the next slots; what they are is yet to be stored."""

        def into(held, more):
            return jax.lax.dynamic_update_slice(held, more, (0, self.slot))

        layout = self.layout.replace(
            position=into(self.layout.position, new.position),
            segment=into(self.layout.segment, new.segment),
            order=into(self.layout.order, new.order),
        )
        return self.replace(layout=layout, slot=self.slot + new.position.shape[1])
