"""Decoder-only transformer for all text models, which differ in their `DecoderConfig` only.

Axes: B batch, T tokens, S tokens attended to, D width, F hidden width, N query heads, K key heads,
H head size, R half the rotated part of a head, V vocabulary, L layers, U kinds of layer.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from jaxtune import sharding
from jaxtune.models.attention import Implementation, attend, attend_cached, soften, weights
from jaxtune.models.cache import CachedKV, KVCache
from jaxtune.models.layers import (
    ACTIVATIONS,
    SEEN,
    STACKED,
    STATES,
    Embedding,
    Head,
    Linear,
    RMSNorm,
    asked_for,
)
from jaxtune.models.layout import Layout, arrange, check_tokens, lengths, mask, reach
from jaxtune.models.programs import Model
from jaxtune.models.remat import by_blocks, named, rematerialised
from jaxtune.models.rope import Rope, angles, rotate


@dataclass(frozen=True)
class LayerKind:
    """Settings that may differ between layers: rotary frequencies and attention window."""

    rope: Rope
    window: int | None = None  # tokens that a query sees, itself included; None: all


@dataclass(frozen=True)
class DecoderConfig:
    """Architecture of a decoder-only transformer."""

    vocabulary: int
    width: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    layers: tuple[LayerKind, ...]  # kind of each layer, first to last
    context: int  # context length that the model was trained or scaled for, in tokens
    query_scale: float  # factor of the attention logits
    tied: bool  # whether the head is the transposed embedding
    activation: str = "silu"
    norm_epsilon: float = 1e-6
    norm_offset: float = 0.0  # added to stored norm scales: 1 if the checkpoint has scale - 1
    embed_scale: float = 1.0
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    qk_norm: bool = False  # RMS norm of each query and key head
    post_norms: bool = False  # RMS norm of each branch before it joins the residual
    qkv_bias: bool = False
    out_bias: bool = False  # bias of the attention's output projection
    mlp_bias: bool = False

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """Distinct kinds of layer, in order of first appearance."""
        return tuple(dict.fromkeys(self.layers))

    @property
    def switch(self) -> int | None:
        """Sequence length above which all tokens, the first included, use `Rope.long` frequencies.

        None if no layer has such frequencies.
        """
        return max((kind.rope.switch for kind in self.kinds if kind.rope.long), default=None)


@struct.dataclass
class Shared:
    """Inputs that are the same for all layers."""

    layout: Layout
    cosine: jax.Array  # float32[U, B, T, R]
    sine: jax.Array
    slot: jax.Array | None = None  # int32[], cache slot of the first token
    keys: Layout | None = None  # layout of the cache to attend to; None: attend to the input tokens
    attention: Implementation = struct.field(pytree_node=False, default="auto")


HeadNorm = nn.remat(RMSNorm)  # or else XLA keeps the heads in float32 for the gradient


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    config: DecoderConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        stored: CachedKV | None,
        layer: jax.Array,
        kind: jax.Array,
        shared: Shared,
    ) -> tuple[jax.Array, CachedKV | None]:  # [B, T, D]
        config = self.config
        q = self._heads(x, "q", config.heads)
        k = self._heads(x, "k", config.kv_heads)
        v = self._heads(x, "v", config.kv_heads)
        if config.qk_norm:
            q = HeadNorm(config.norm_epsilon, config.norm_offset, name="q_norm")(q)
            k = HeadNorm(config.norm_epsilon, config.norm_offset, name="k_norm")(k)
        q, k = (_rotated(each, shared.cosine, shared.sine, kind) for each in (q, k))
        if stored is not None:
            stored = stored.put(layer, shared.slot, k, v)
        layouts = (shared.layout, shared.keys or shared.layout)
        windows = tuple(each.window for each in config.kinds)
        how = dict(scale=config.query_scale, softcap=config.attention_softcap)
        which = dict(kind=kind, windows=windows, implementation=shared.attention)
        if shared.keys is None:
            attended = attend(q, k, v, *layouts, **which, **how)
        else:
            attended = attend_cached(q, stored, layer, *layouts, **which, **how)
        if asked_for(self, SEEN):
            k = k if shared.keys is None else stored.of(layer, x.dtype)[0]
            seen = mask(*layouts, reach(windows, kind))
            self.sow(SEEN, "weights", weights(q, k, seen, **how))
        joined = attended.reshape(*x.shape[:2], config.heads * config.head_size)
        return named(Linear(config.width, config.out_bias, name="o")(joined)), stored

    def _heads(self, x: jax.Array, name: str, count: int) -> jax.Array:  # [B, T, count, H]
        size = self.config.head_size
        projected = named(Linear(count * size, self.config.qkv_bias, name=name)(x))
        return projected.reshape(*x.shape[:2], count, size)


@jax.checkpoint  # or else XLA keeps the layer's part of the tables for the gradient, twice on TPUs
def _rotated(
    heads: jax.Array,  # [B, T, N, H]
    cosine: jax.Array,  # float32[U, B, T, R]
    sine: jax.Array,
    kind: jax.Array,  # int32[]
) -> jax.Array:  # [B, T, N, H]
    """Returns heads that are rotated by the angles of one kind of layer."""
    return rotate(heads, cosine[kind], sine[kind])


class Mlp(nn.Module):
    """Gated MLP: down(activation(gate(x)) * up(x))."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [B, T, D]
        config = self.config
        gate = named(Linear(config.hidden, config.mlp_bias, name="gate")(x))
        up = named(Linear(config.hidden, config.mlp_bias, name="up")(x))
        gated = _gated(gate, up, config.activation)
        return named(Linear(config.width, config.mlp_bias, name="down")(gated))


@partial(jax.checkpoint, static_argnums=2)  # or else XLA keeps a float32 tanh for the gradient
def _gated(gate: jax.Array, up: jax.Array, activation: str) -> jax.Array:  # [B, T, F]
    """Returns activation(gate) * up, of which the backward pass keeps the two arguments alone."""
    return ACTIVATIONS[activation](gate) * up


class Block(nn.Module):
    """One pre-norm layer: attention, then the MLP, each added to the residual."""

    config: DecoderConfig
    remat: str = "none"  # key of `remat.REMAT`

    @nn.compact
    def __call__(
        self,
        carry: tuple[jax.Array, CachedKV | None],
        place: tuple[jax.Array, jax.Array],  # index of the layer, and of its kind
        shared: Shared,
    ) -> tuple[tuple[jax.Array, CachedKV | None], None]:
        x, stored = carry
        x = named(x if shared.keys else sharding.by_rows(x), "input")
        attention = Attention(self.config, name="attn")
        attended, stored = attention(self._norm("attn_norm", x), stored, *place, shared)
        x = x + self._after("attn_post_norm", attended)
        x = by_blocks(Block._mixed, self, x, self.remat)
        if asked_for(self, STATES):
            self.sow(STATES, "output", x)
        return (x, stored), None

    def _mixed(self, x: jax.Array) -> jax.Array:
        mixed = Mlp(self.config, name="mlp")(self._norm("mlp_norm", x))
        return x + self._after("mlp_post_norm", mixed)

    def _norm(self, name: str, x: jax.Array) -> jax.Array:
        return RMSNorm(self.config.norm_epsilon, self.config.norm_offset, name=name)(x)

    def _after(self, name: str, branch: jax.Array) -> jax.Array:
        return self._norm(name, branch) if self.config.post_norms else branch


class Decoder(Model):
    """A decoder-only language model: `model.apply(variables, tokens)` returns logits.

    The parts can be applied on their own, for a loss or for decoding, with
    `model.apply(variables, tokens, method="embed")`, and in the same way `hidden` and `logits`.
    """

    config: DecoderConfig
    dtype: Any = jnp.float32  # of activations; norms, attention logits and logits are float32
    # Where the weights came from. Models that differ only in this share one compiled program.
    origin: Any = field(default=None, compare=False, repr=False)
    attention: Implementation = "auto"  # implementation of attention; see `attention.attend`
    remat: str = "full"  # rematerialisation policy; see `remat.REMAT`
    precision: str = "auto"  # of products of float32; see `quant.precision`
    deterministic: bool = False  # whether programs on GPUs return the same bits every time

    tower = ""  # path prefix of the decoder's leaves
    pictures = None  # a text model takes no pictures

    def setup(self):
        config = self.config
        self.embedding = Embedding(config.vocabulary, config.width, name="embed")
        self.layers = nn.scan(
            rematerialised(Block, self.remat),
            variable_axes=STACKED,
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast),
            length=len(config.layers),
        )(config, self.remat)
        self.norm = RMSNorm(config.norm_epsilon, config.norm_offset)
        if not config.tied:
            self.head = Head(config.vocabulary)

    def __call__(
        self,
        tokens: jax.Array,  # int32[B, T]
        *,
        positions: jax.Array | None = None,  # int32[B, T]
        segments: jax.Array | None = None,  # int32[B, T]
        valid: jax.Array | None = None,  # bool[B, T]
        causal: jax.Array | None = None,  # bool[B, T]
    ) -> jax.Array:  # float32[B, T, V]
        check_tokens(tokens)
        layout = arrange(tokens.shape, positions, segments, valid, causal)
        return self.logits(self.hidden(self.embed(tokens), layout))

    def embed(self, tokens: jax.Array) -> jax.Array:  # [B, T, D]
        """Returns token embeddings, scaled, as the input of the first layer."""
        # Models that scale embeddings were trained with the factor rounded to the activations'
        # dtype.
        scale = jnp.asarray(self.config.embed_scale, self.dtype)
        return self.embedding(tokens, self.dtype) * scale

    def hidden(self, x: jax.Array, layout: Layout) -> jax.Array:  # [B, T, D]
        """Runs embeddings through all layers and the final norm."""
        return self._through(x, None, layout)[0]

    def prefill(
        self, x: jax.Array, layout: Layout, cache: KVCache
    ) -> tuple[jax.Array, KVCache]:  # [B, T, D]
        """Runs the layers over whole prompts, as `hidden` does, and fills an empty KV cache."""
        x, stored = self._through(x, cache.stored, layout, slot=cache.slot)
        return x, cache.noted(layout).replace(stored=stored)

    def extend(
        self, x: jax.Array, layout: Layout, cache: KVCache
    ) -> tuple[jax.Array, KVCache]:  # [B, T, D]
        """Runs the layers over new tokens that attend to a KV cache, and adds them to the cache."""
        noted = cache.noted(layout)
        x, stored = self._through(x, cache.stored, layout, slot=cache.slot, keys=noted.layout)
        return x, noted.replace(stored=stored)

    def _through(
        self,
        x: jax.Array,
        stored: CachedKV | None,
        layout: Layout,
        slot: jax.Array | None = None,
        keys: Layout | None = None,
    ) -> tuple[jax.Array, CachedKV | None]:
        config = self.config
        # `lengths` compares every pair of tokens, so it is left out where no rope depends on it.
        span = layout.position if config.switch is None else lengths(layout)
        tables = [angles(kind.rope, layout.position, span) for kind in config.kinds]
        cosine, sine = (jnp.stack(table) for table in zip(*tables, strict=True))
        shared = Shared(layout, cosine, sine, slot, keys, self.attention)
        kinds = jnp.asarray([config.kinds.index(kind) for kind in config.layers], jnp.int32)
        places = (jnp.arange(len(config.layers)), kinds)
        (x, stored), _ = self.layers((x, stored), places, shared)
        return self.norm(x), stored

    def logits(self, hidden: jax.Array) -> jax.Array:  # float32[..., V]
        """Returns the logits of the next token for hidden states of any leading shape."""
        scores = self.embedding.score(hidden) if self.config.tied else self.head(hidden)
        return soften(scores, self.config.logit_softcap)
