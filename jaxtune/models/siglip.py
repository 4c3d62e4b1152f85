"""SigLIP's vision tower, which encodes a picture into one vector per patch.

Axes beyond the decoder's: S side of a picture in pixels, P patches of a picture, W width.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxtune import quant
from jaxtune.models.attention import attend
from jaxtune.models.layers import ACTIVATIONS, STACKED, LayerNorm, Linear, random
from jaxtune.models.remat import by_blocks, named, rematerialised


@dataclass(frozen=True)
class SiglipConfig:
    """Architecture of a SigLIP vision tower."""

    side: int  # side of a picture in pixels
    patch: int  # side of a patch in pixels
    width: int
    hidden: int
    heads: int
    layers: int
    activation: str = "gelu_tanh"
    norm_epsilon: float = 1e-6

    @property
    def grid(self) -> int:
        """Number of patches along a side of a picture."""
        return self.side // self.patch


class Patches(nn.Module):
    """Linear embedding of square patches; pixels past the last whole patch are cropped."""

    config: SiglipConfig

    @nn.compact
    def __call__(self, pictures: jax.Array) -> jax.Array:  # [B, S, S, 3] -> [B, P, W]
        patch, grid, width = self.config.patch, self.config.grid, self.config.width
        shape = (patch, patch, 3, width)
        w = self.variable("params", "w", random(self, shape, (patch * patch * 3) ** -0.5)).value
        b = self.variable("params", "b", jnp.zeros, (width,)).value
        cut = pictures[:, : grid * patch, : grid * patch]
        squares = cut.reshape(-1, grid, patch, grid, patch, 3).swapaxes(2, 3)
        flat = squares.reshape(-1, patch * patch * 3)
        found = quant.dot(flat, w.reshape(-1, width)) + b.astype(flat.dtype)
        return found.reshape(-1, grid * grid, width)


class Attention(nn.Module):
    """Multi-head self-attention over all patches, without a mask."""

    config: SiglipConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [B, P, W]
        width, heads = self.config.width, self.config.heads
        q, k, v = (
            named(Linear(width, bias=True, name=name)(x)).reshape(*x.shape[:2], heads, -1)
            for name in "qkv"
        )
        how = dict(kind=jnp.int32(0), windows=(None,), scale=(width // heads) ** -0.5)
        attended = attend(q, k, v, None, None, **how)
        return named(Linear(width, bias=True, name="o")(attended.reshape(x.shape)))


class Mlp(nn.Module):
    """MLP: two linear maps with an activation between them."""

    config: SiglipConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [B, P, W]
        wide = named(Linear(self.config.hidden, bias=True, name="up")(x))
        active = ACTIVATIONS[self.config.activation](wide)
        return named(Linear(self.config.width, bias=True, name="down")(active))


class Block(nn.Module):
    """One pre-norm layer: attention, then the MLP, each added to the residual."""

    config: SiglipConfig
    remat: str = "none"  # key of `remat.REMAT`

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:  # [B, P, W]
        x = x + Attention(self.config, name="attn")(self._norm("attn_norm")(x))
        return by_blocks(Block._mixed, self, x, self.remat), None

    def _mixed(self, x: jax.Array) -> jax.Array:
        return x + Mlp(self.config, name="mlp")(self._norm("mlp_norm")(x))

    def _norm(self, name: str) -> LayerNorm:
        return LayerNorm(self.config.norm_epsilon, name=name)


class Siglip(nn.Module):
    """SigLIP vision tower: pictures [B, S, S, 3] from -1 to 1 -> patch vectors [B, P, W].

    Patches are in row-major order.
    """

    config: SiglipConfig
    dtype: Any = jnp.float32  # of activations
    remat: str = "full"  # key of `remat.REMAT`

    def setup(self):
        config = self.config
        self.patches = Patches(config)
        shape = (config.grid**2, config.width)
        self.positions = self.variable("params", "positions", random(self, shape, 0.02))
        self.layers = nn.scan(
            rematerialised(Block, self.remat),
            variable_axes=STACKED,
            split_rngs={"params": True, "dropout": True},
            length=config.layers,
        )(config, self.remat)
        self.norm = LayerNorm(config.norm_epsilon)

    def __call__(self, pictures: jax.Array) -> jax.Array:
        x = self.patches(pictures.astype(self.dtype)) + self.positions.value.astype(self.dtype)
        return self.norm(self.layers(x)[0])
