"""A decoder that sees pictures: their patches, encoded and projected, stand among its tokens.

Axes beyond the decoder's: I pictures of a row, S side of a picture in pixels.
"""

from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxtune.models.cache import KVCache
from jaxtune.models.decoder import Decoder, DecoderConfig
from jaxtune.models.layers import Linear
from jaxtune.models.layout import Layout, arrange
from jaxtune.models.siglip import Siglip, SiglipConfig


@dataclass(frozen=True)
class PicturesConfig:
    """How pictures come among a decoder's tokens."""

    tower: SiglipConfig
    token: int  # stands where a picture's vectors go; it need not be in the vocabulary

    @property
    def side(self) -> int:
        """Pixels of a picture's side."""
        return self.tower.side

    @property
    def tokens(self) -> int:
        """Tokens that a picture takes."""
        return self.tower.grid**2


class PaliGemma(nn.Module):
    """A vision-language model: `model.apply(variables, tokens, images)` gives logits.

    It has the parts of a `Decoder`, and of these `embed` takes pictures.
    """

    config: DecoderConfig
    pictures: PicturesConfig
    dtype: Any = jnp.float32
    origin: Any = field(default=None, compare=False, repr=False)  # as a `Decoder`'s
    attention: str = "auto"
    remat: str = "full"

    tower = "llm/"  # where the decoder's leaves are

    def setup(self):
        self.llm = Decoder(self.config, self.dtype, attention=self.attention, remat=self.remat)
        self.img = Siglip(self.pictures.tower, self.dtype, self.remat)
        self.projector = Linear(self.config.width, bias=True)

    def __call__(
        self,
        tokens: jax.Array,  # int32[B, T]
        images: jax.Array | None = None,  # [B, S, S, 3] or [B, I, S, S, 3], from -1 to 1
        *,
        positions: jax.Array | None = None,  # int32[B, T]
        segments: jax.Array | None = None,  # int32[B, T]
        valid: jax.Array | None = None,  # bool[B, T]
        causal: jax.Array | None = None,  # bool[B, T]
    ) -> jax.Array:  # float32[B, T, V]
        layout = arrange(tokens.shape, positions, segments, valid, causal)
        return self.logits(self.hidden(self.embed(tokens, images), layout))

    def embed(self, tokens: jax.Array, images: jax.Array | None = None) -> jax.Array:  # [B, T, D]
        """Tokens' embeddings, and for picture tokens those of the row's pictures in order."""
        pictured = tokens == self.pictures.token
        x = self.llm.embed(jnp.where(pictured, 0, tokens))
        if images is None:
            return x
        soft = self.projector(self.img(images.reshape(-1, *images.shape[-3:])))
        soft = soft.reshape(tokens.shape[0], -1, x.shape[-1])  # [B, I · P, D]
        place = jnp.maximum(jnp.cumsum(pictured, axis=1) - 1, 0)
        found = jnp.take_along_axis(soft, place[..., None], axis=1, mode="clip")
        return jnp.where(pictured[..., None], found, x)

    def hidden(self, x: jax.Array, layout: Layout) -> jax.Array:  # [B, T, D]
        """As the decoder's."""
        return self.llm.hidden(x, layout)

    def prefill(
        self, x: jax.Array, layout: Layout, cache: KVCache
    ) -> tuple[jax.Array, KVCache]:  # [B, T, D]
        """As the decoder's."""
        return self.llm.prefill(x, layout, cache)

    def extend(
        self, x: jax.Array, layout: Layout, cache: KVCache
    ) -> tuple[jax.Array, KVCache]:  # [B, T, D]
        """As the decoder's."""
        return self.llm.extend(x, layout, cache)

    def logits(self, hidden: jax.Array) -> jax.Array:  # float32[..., V]
        """As the decoder's."""
        return self.llm.logits(hidden)


Model = Decoder | PaliGemma
