"""Low-rank adapters: a leaf beside a weight that adds to what the weight computes.

Adapters live in a collection of their own, `variables["lora"]`, which mirrors `params`: the one of
`params/layers/attn/q/w` is `lora/layers/attn/q/w`. `Linear` asks for the adapter at its place.
"""

import operator
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxtune import quant, tree

# Of the decoder alone: a picture tower's are named by patterns, such as `img/layers/.*/w`.
TARGETS = {
    "all-linear": (r"(llm/)?layers/(attn/[qkvo]|mlp/(gate|up|down))/w",),
    "attention": (r"(llm/)?layers/attn/[qkvo]/w",),
}
EMBEDDING = r"(llm/)?embed/w"
VARIANTS = ("lora", "rslora", "dora")
INITS = ("default", "pissa")
TRAINABLE: tree.Rules = ((r"lora/.*/(a|b|magnitude)", True), (r".*", False))


@struct.dataclass
class Lora:
    """x @ w becomes x @ w + scale · x @ a @ b; with a magnitude, DoRA's form of that."""

    a: jax.Array  # [..., in, r]
    b: jax.Array  # [..., r, out]
    scale: jax.Array  # float32[...]
    dropout: jax.Array  # float32[...], the share of x that `a` does not see in training
    magnitude: jax.Array | None = None  # [..., out]

    def stands_on(self, shape: tuple[int, ...]) -> bool:
        """Whether a weight of some shape may have this adapter."""
        *layers, inside, outside = shape
        rank = self.a.shape[-1]
        a, b = (*layers, inside, rank), (*layers, rank, outside)
        return (self.a.shape, self.b.shape) == (a, b)

    def adapt(
        self,
        x: jax.Array,  # [n, in]
        w: Any,  # [in, out], plain or quantised
        y: jax.Array,  # [n, out], x @ w
        key: jax.Array | None,  # None outside training
    ) -> jax.Array:  # [n, out]
        """What the adapter makes of x @ w."""
        seen = x if key is None else _drop(x, self.dropout, key)
        a, b = self.a.astype(x.dtype), self.b.astype(x.dtype)
        low = (((seen @ a) * self.scale.astype(x.dtype)) @ b).astype(y.dtype)
        if self.magnitude is None:
            return y + low
        # As its authors do, the norm is taken as a constant: its gradient changes little.
        norm = jax.lax.stop_gradient(_column_norms(w, self))
        ratio = (self.magnitude / norm).astype(y.dtype)
        base = y if key is None else (seen @ w.astype(x.dtype)).astype(y.dtype)
        return y + (ratio - 1) * base + ratio * low


def add_lora(
    variables: Mapping,
    rank: int = 8,
    alpha: float = 16.0,
    targets: str | Sequence[str] = "all-linear",
    *,
    key: jax.Array,
    dropout: float = 0.0,
    variant: str = "lora",
    init: str = "default",
) -> dict:
    """Variables with a new adapter beside every target.

    `targets` is "all-linear", "attention", or patterns over the paths of `params`. A fresh adapter
    changes nothing; with `init="pissa"` it holds the weights' principal part, taken out of them.
    """
    _check(rank, dropout, variant, init)
    params = quant.by_path(variables["params"])
    scale = alpha / (rank**0.5 if variant == "rslora" else rank)
    adapters = {}
    for number, path in enumerate(_targeted(params, targets)):
        made = _new(params[path], rank, scale, dropout, jax.random.fold_in(key, number))
        if init == "pissa":
            made, params[path] = _principal(params[path], made)
        if variant == "dora":
            made = made.replace(magnitude=_column_norms(params[path], made))
        adapters[path] = made
    return {**variables, "params": tree.unflatten(params), "lora": tree.unflatten(adapters)}


def merge(variables: Mapping) -> dict:
    """Variables without adapters, whose weights do what weights and adapters did together.

    A quantised weight with an adapter becomes a plain one, in the dtype of the embedding.
    """
    params = quant.by_path(variables["params"])
    plain = embedding(params).dtype
    for path, adapter in adapters(variables).items():
        w = params[path]
        params[path] = merged(w, adapter, plain if quant.is_quantized(w) else w.dtype)
    rest = {name: leaves for name, leaves in variables.items() if name != "lora"}
    return rest | {"params": tree.unflatten(params)}


def embedding(params: Mapping[str, Any]) -> Any:
    """The table of token vectors among parameters by path, wherever the decoder's are."""
    return next(leaf for path, leaf in params.items() if re.fullmatch(EMBEDDING, path))


def adapters(variables: Mapping) -> dict[str, Lora]:
    """The adapters by the path of the weight that each stands beside."""
    found = variables.get("lora") or {}
    return tree.flatten(found, is_leaf=lambda node: isinstance(node, Lora))


def one_layer(leaf: Any, layer: int | None) -> Any:
    """One layer of a stacked weight or adapter; the whole of what has no layers."""
    return leaf if layer is None else jax.tree.map(operator.itemgetter(layer), leaf)


@partial(jax.jit, static_argnames="dtype")
def merged(w: Any, adapter: Lora, dtype: Any) -> jax.Array:  # [..., in, out]
    """The weight that does what a weight and its adapter do, computed a layer at a time."""
    if w.ndim > 2:
        return jax.lax.map(lambda each: merged(*each, dtype), (w, adapter))
    whole = w.astype(jnp.float32) + _product(adapter)
    if adapter.magnitude is not None:
        whole = whole * (adapter.magnitude / jnp.linalg.norm(whole, axis=-2))
    return whole.astype(dtype)


def _check(rank: int, dropout: float, variant: str, init: str) -> None:
    if type(rank) is not int or rank < 1:
        raise ValueError(f"rank {rank!r}: expected a whole number from 1")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout {dropout!r}: expected a share from 0 to below 1")
    for name, value, known in (("variant", variant, VARIANTS), ("init", init, INITS)):
        if value not in known:
            raise ValueError(f"{name} {value!r}: expected one of {', '.join(known)}")


def _targeted(params: Mapping, targets: str | Sequence[str]) -> list[str]:
    """The paths that patterns name; each must name a matrix, and each pattern some path."""
    if isinstance(targets, str) and targets not in TARGETS:
        raise ValueError(
            f"targets {targets!r}: expected {', '.join(TARGETS)} or a list of patterns"
        )
    patterns = TARGETS[targets] if isinstance(targets, str) else targets
    rules = [*((pattern, True) for pattern in patterns), (r".*", False)]
    chosen = [path for path, take in tree.match(rules, params).items() if take]
    flat = [path for path in chosen if not path.endswith("/w") or re.fullmatch(EMBEDDING, path)]
    if flat:
        raise ValueError(f"no adapter can stand beside {', '.join(flat)}: not a linear map")
    return chosen


def _new(w: Any, rank: int, scale: float, dropout: float, key: jax.Array) -> Lora:
    *layers, inside, outside = w.shape
    bound = inside**-0.5
    return Lora(
        a=jax.random.uniform(key, (*layers, inside, rank), jnp.float32, -bound, bound),
        b=jnp.zeros((*layers, rank, outside), jnp.float32),
        scale=jnp.full(layers, scale, jnp.float32),
        dropout=jnp.full(layers, dropout, jnp.float32),
    )


def _principal(w: Any, adapter: Lora) -> tuple[Lora, jax.Array]:
    """PiSSA: the largest singular directions as the adapter, and the weight without them."""
    if quant.is_quantized(w):
        raise ValueError(
            "init='pissa' takes the adapter out of the weights, and quantised ones cannot be "
            "changed: load the base without quant, or take init='default'"
        )
    rank = adapter.a.shape[-1]
    u, s, vt = jnp.linalg.svd(w.astype(jnp.float32), full_matrices=False)
    root = jnp.sqrt(s[..., :rank] / adapter.scale[..., None])
    adapter = adapter.replace(
        a=u[..., :rank] * root[..., None, :], b=root[..., :, None] * vt[..., :rank, :]
    )
    return adapter, (w.astype(jnp.float32) - _product(adapter)).astype(w.dtype)


def _product(adapter: Lora) -> jax.Array:  # [..., in, out]
    return adapter.scale[..., None, None] * (adapter.a @ adapter.b)


def _column_norms(w: Any, adapter: Lora) -> jax.Array:  # [..., out]
    if w.ndim > 2:  # a layer at a time: plain, a quantised weight takes several times its memory
        return jax.lax.map(lambda each: _column_norms(*each), (w, adapter))
    return jnp.linalg.norm(w.astype(jnp.float32) + _product(adapter), axis=-2)


def _drop(x: jax.Array, share: jax.Array, key: jax.Array) -> jax.Array:
    return jnp.where(_kept(x.shape, share, key), x * (1 / (1 - share)).astype(x.dtype), 0)


def _kept(shape: tuple[int, int], share: jax.Array, key: jax.Array) -> jax.Array:  # bool[n, in]
    """All but a random `share` of places.

    The key seeds a hash of each place's number. It is several times cheaper than drawing every
    bit from the key, and part of the arithmetic around it: the mask is never in memory.
    """
    first, second = jax.random.bits(key, (2,), jnp.uint32)
    row, column = (jax.lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in (0, 1))
    word = _mixed(_mixed((row * jnp.uint32(shape[1]) + column) ^ first) + second)
    return word >= (share * 2.0**32).astype(jnp.uint32)


def _mixed(word: jax.Array) -> jax.Array:  # uint32[...]
    """The last steps of MurmurHash3: every bit bears on every other."""
    word = (word ^ (word >> 16)) * jnp.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
    return word ^ (word >> 16)
