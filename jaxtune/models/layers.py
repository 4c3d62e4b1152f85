"""Layers that the text and vision towers share: linear maps, embeddings and norms."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxtune import quant, sharding
from jaxtune.models import tables

# Collections that take the attention weights and the outputs of the decoder's layers where a caller
# asks for them by `mutable`.
SEEN, STATES = "attention", "states"
# Collections whose arrays have the layers of a tower on their first axis.
STACKED = {"params": 0, "lora": 0, "intermediates": 0, SEEN: 0, STATES: 0}
ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}


class Linear(nn.Module):
    """Linear map x @ w (+ b), with the adapter of `w` if the `lora` collection has one.

    `w` may be quantised. The product is accumulated in dtype `output`, by default that of `x`.
    """

    features: int
    bias: bool = False
    output: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [..., in] -> [..., features]
        shape = (x.shape[-1], self.features)
        w = self.variable("params", "w", random(self, shape, shape[0] ** -0.5)).value
        # Two dimensions, because XLA's CPU backend is slow on 3-D products in the backward pass.
        flat = x.reshape(-1, x.shape[-1])
        # Over a mesh, weights travel to the tokens, or in decoding the few tokens to the weights.
        many = len(flat) >= shape[0]
        gather = partial(sharding.gathered, "/".join((*self.path, "w"))) if many else lambda w: w
        w = gather(w)
        y = self.product(flat, w)
        if self.has_variable("lora", "w"):
            key = self.make_rng("dropout") if self.has_rng("dropout") else None
            y = gather(self.get_variable("lora", "w")).adapt(flat, w, y, key, x.shape[:-1])
        if self.bias:
            b = self.variable("params", "b", jnp.zeros, (self.features,)).value
            y = y + b.astype(y.dtype)
        return y.reshape(*x.shape[:-1], self.features)

    @nn.nowrap
    def product(self, x: jax.Array, w: Any) -> jax.Array:  # [n, in], [in, out] -> [n, out]
        """Returns x @ w, accumulated in dtype `output`, where `w` may be quantised."""
        return quant.dot(x, w, self.output)


class Head(Linear):
    """Linear map to float32 logits, one for each of many tokens."""

    output: Any = jnp.float32

    @nn.nowrap
    def product(self, x: jax.Array, w: jax.Array) -> jax.Array:  # [n, D], [D, V] -> float32[n, V]
        """Returns x @ w; on a CPU, a bfloat16 `w` is widened a block of tokens at a time."""
        return tables.scores(x, w, axis=1)


class Embedding(nn.Module):
    """Token embedding, whose table can also serve as a tied output head."""

    vocabulary: int
    width: int

    def setup(self):
        self.w = self.variable("params", "w", random(self, (self.vocabulary, self.width), 0.02))

    def __call__(self, tokens: jax.Array, dtype: Any) -> jax.Array:  # int32[...] -> [..., D]
        return tables.rows(self.w.value, tokens, dtype)

    def score(self, x: jax.Array) -> jax.Array:  # [..., D] -> float32[..., V]
        """Returns the dot product of `x` with every token's vector: the logits of a tied head."""
        flat = tables.scores(x.reshape(-1, x.shape[-1]), self.w.value)
        return flat.reshape(*x.shape[:-1], -1)


class RMSNorm(nn.Module):
    """RMS norm: x over its root mean square, times `offset + scale`; computed in float32."""

    epsilon: float
    offset: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [..., D]
        start = jnp.full((x.shape[-1],), 1.0 - self.offset)
        scale = self.variable("params", "scale", lambda: start).value.astype(jnp.float32)
        wide = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        normed = wide * jax.lax.rsqrt(mean_square + self.epsilon)
        return (normed * (self.offset + scale)).astype(x.dtype)


class LayerNorm(nn.Module):
    """Layer norm: x scaled to mean 0 and variance 1, times `scale` plus `bias`; in float32."""

    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [..., D]
        scale = self.variable("params", "scale", jnp.ones, (x.shape[-1],)).value
        bias = self.variable("params", "bias", jnp.zeros, (x.shape[-1],)).value
        wide = x.astype(jnp.float32)
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(variance + self.epsilon)
        return (normed * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


def asked_for(module: nn.Module, collection: str) -> bool:
    """Returns whether the caller of a model wants a collection of what its layers compute."""
    return module.is_mutable_collection(collection) and not module.is_initializing()


def random(module: nn.Module, shape: tuple[int, ...], deviation: float):
    """Returns a normal initialiser that requests a random key only when it is called."""
    return lambda: deviation * jax.random.normal(module.make_rng("params"), shape)
