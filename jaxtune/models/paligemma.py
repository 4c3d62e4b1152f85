"""PaliGemma: a decoder with a vision tower, whose projected patches take the place of tokens.

Axes beyond the decoder's: I pictures of a row, S side of a picture in pixels.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from jaxtune.models import programs
from jaxtune.models.attention import Implementation
from jaxtune.models.cache import KVCache
from jaxtune.models.decoder import Decoder, DecoderConfig
from jaxtune.models.layers import Linear
from jaxtune.models.layout import Layout, arrange, check_tokens
from jaxtune.models.siglip import Siglip, SiglipConfig


@dataclass(frozen=True)
class PicturesConfig:
    """Vision tower of a model, and the token that marks the places of a picture's patches."""

    tower: SiglipConfig
    token: int  # placeholder of a patch vector; it need not be in the vocabulary

    @property
    def side(self) -> int:
        """Side of a picture in pixels."""
        return self.tower.side

    @property
    def tokens(self) -> int:
        """Number of tokens per picture."""
        return self.tower.grid**2


class PaliGemma(programs.Model):
    """A vision-language model: `model.apply(variables, tokens, images)` returns logits.

    It has the methods of `Decoder`, of which `embed` also takes pictures.
    """

    config: DecoderConfig
    pictures: PicturesConfig
    dtype: Any = jnp.float32
    origin: Any = field(default=None, compare=False, repr=False)  # as in `Decoder`
    attention: Implementation = "auto"
    remat: str = "full"
    precision: str = "auto"
    deterministic: bool = False

    tower = "llm/"  # path prefix of the decoder's leaves

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
        check_tokens(tokens)
        layout = arrange(tokens.shape, positions, segments, valid, causal)
        return self.logits(self.hidden(self.embed(tokens, images), layout))

    def embed(self, tokens: jax.Array, images: jax.Array | None = None) -> jax.Array:  # [B, T, D]
        """Returns token embeddings, with the row's patch vectors, in order, at picture tokens."""
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
        """Runs embeddings through the decoder: see `Decoder.hidden`."""
        return self.llm.hidden(x, layout)

    def prefill(
        self, x: jax.Array, layout: Layout, cache: KVCache
    ) -> tuple[jax.Array, KVCache]:  # [B, T, D]
        """Runs the decoder over whole prompts and fills an empty cache: see `Decoder.prefill`."""
        return self.llm.prefill(x, layout, cache)

    def extend(
        self, x: jax.Array, layout: Layout, cache: KVCache
    ) -> tuple[jax.Array, KVCache]:  # [B, T, D]
        """Runs the decoder over new tokens that attend to a cache: see `Decoder.extend`."""
        return self.llm.extend(x, layout, cache)

    def logits(self, hidden: jax.Array) -> jax.Array:  # float32[..., V]
        """Returns the logits of the next token: see `Decoder.logits`."""
        return self.llm.logits(hidden)


Model = Decoder | PaliGemma
