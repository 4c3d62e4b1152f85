"""KV cache: keys and values of earlier tokens, so that decoding does not compute them again.

Axes: L layers, B rows, S slots, K key heads, H head size, T new tokens.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.experimental import layout

from jaxtune.models.layout import PADDING, Layout


@struct.dataclass
class CachedKV:
    """Keys and values of all layers; the tokens of a row may have empty slots between them.

    A head's slots are adjacent, as the products of attention read them: with heads innermost, XLA
    transposes the whole cache before and after every loop that decodes.
    """

    k: jax.Array  # [L, B, K, S, H]
    v: jax.Array

    def put(self, layer: jax.Array, slot: jax.Array, k: jax.Array, v: jax.Array) -> "CachedKV":
        """Returns a copy with keys and values [B, T, K, H] written to one layer.

        Args:
          layer: Index of the layer, int32[].
          slot: Slot of the first token, int32[].
          k: Keys of T tokens per row.
          v: Values of the same tokens.

        Returns:
          The new `CachedKV`, with the arrays' dtype unchanged.
        """

        def into(held, new):
            new = new.swapaxes(1, 2)[None].astype(held.dtype)
            # Otherwise XLA keeps the cache of a prefill in the order in which keys are computed,
            # and transposes all of it at the end.
            order = layout.Layout(major_to_minor=tuple(range(held.ndim)))
            new = layout.with_layout_constraint(new, order)
            return jax.lax.dynamic_update_slice(held, new, (layer, 0, 0, slot, 0))

        return CachedKV(into(self.k, k), into(self.v, v))

    def of(self, layer: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:  # [B, S, K, H]
        """Returns the keys and values of one layer as `dtype`."""
        k, v = (held[layer].swapaxes(1, 2).astype(dtype) for held in (self.k, self.v))
        return k, v


@struct.dataclass
class KVCache:
    """Keys and values with the layout of their tokens."""

    stored: CachedKV
    layout: Layout  # [B, S], with segment PADDING in slots that no token may see
    slot: jax.Array  # int32[], first free slot, the same in every row

    @classmethod
    def empty(cls, config: Any, rows: int, slots: int, dtype: Any) -> "KVCache":
        """Returns an empty cache.

        Args:
          config: The decoder's `DecoderConfig`.
          rows: Number of sequences, B.
          slots: Number of tokens that fit in a row, S, including padding of prompts.
          dtype: Dtype of keys and values.

        Returns:
          A cache whose slots are all free.
        """
        shape = (len(config.layers), rows, config.kv_heads, slots, config.head_size)
        # Two separate arrays, because both are donated and overwritten.
        stored = CachedKV(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
        nothing = jnp.full((rows, slots), PADDING, jnp.int32)
        layout = Layout(nothing, nothing, nothing, whole=False, counted=False)
        return cls(stored, layout, jnp.zeros((), jnp.int32))

    def noted(self, new: Layout) -> "KVCache":  # [B, T]
        """Returns the cache with the layout of T new tokens in the next slots.

        Their keys and values are stored separately, by `CachedKV.put`.
        """

        def into(held, more):
            return jax.lax.dynamic_update_slice(held, more, (0, self.slot))

        layout = self.layout.replace(
            position=into(self.layout.position, new.position),
            segment=into(self.layout.segment, new.segment),
            order=into(self.layout.order, new.order),
        )
        return self.replace(layout=layout, slot=self.slot + new.position.shape[1])
