"""Low-rank adapters (LoRA, rsLoRA, DoRA) of weights that stay frozen.

Adapters are in a collection of their own, `variables["lora"]`, which mirrors `params`: the adapter
of `params/layers/attn/q/w` is `lora/layers/attn/q/w`. `Linear` applies the adapter at its own path.
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
from jaxtune.display.errors import UserError
from jaxtune.display.escapes import typed
from jaxtune.models.arguments import check_variables
from jaxtune.quant import products
from jaxtune.tree import modules

# These name weights of the decoder only. For a vision tower give patterns, such as
# `img/layers/.*/w`.
TARGETS = ("all-linear", "attention")
EMBEDDING = r"(llm/)?embed/w"
LARGEST_RANK = 16_384  # of an adapter, as in the config
LARGEST_SCALE = 1e6  # of an adapter; a larger one is a mistake, and overflows in the logits
VARIANTS = ("lora", "rslora", "dora")
INITS = ("default", "pissa")
TRAINABLE: tree.Rules = ((r"lora/.*/(a|b|magnitude)", True), (r".*", False))


@struct.dataclass
class Lora:
    """Adapter of a weight w: x @ w becomes x @ w + scale · x @ a @ b.

    With a magnitude it is DoRA: each column of w + scale · a @ b is scaled to the norm `magnitude`.
    """

    a: jax.Array  # [..., in, r]
    b: jax.Array  # [..., r, out]
    scale: jax.Array  # float32[...]
    # float32[...], fraction of x that the adapter drops in training; None where it drops nothing,
    # so that no mask is computed.
    dropout: jax.Array | None = None
    magnitude: jax.Array | None = None  # [..., out]
    # float32[..., out], norms of the columns of w + scale · a @ b, where `with_norms` has computed
    # them; None where they are to be computed at each product, as in training.
    norms: jax.Array | None = None

    def stands_on(self, shape: tuple[int, ...]) -> bool:
        """Returns whether the adapter's shapes match a weight of this shape."""
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
        rows: tuple[int, ...] | None = None,
    ) -> jax.Array:  # [n, out]
        """Returns the adapted product.

        Args:
          x: Inputs.
          w: The weight without the adapter.
          y: x @ w.
          key: Random key of dropout; None turns dropout off.
          rows: Shape whose axes the first one of `x` flattens, such as (B, T); by default (n,).
            What is dropped at an index does not depend on their sizes, such as that of a padded T.

        Returns:
          The outputs, in the dtype of `y`.
        """
        drops = key is not None and self.dropout is not None
        inputs = _drop(x, self.dropout, key, rows or x.shape[:1]) if drops else x
        a, b = self.a.astype(x.dtype), self.b.astype(x.dtype)
        # In bfloat16 a scale such as 1.1 would be 0.3 % too small, so factors stay in float32.
        inner = products.einsum("ni,ir->nr", inputs, a).astype(jnp.float32)
        low = products.einsum("nr,ro->no", (inner * self.scale).astype(x.dtype), b).astype(y.dtype)
        if self.magnitude is None:
            return y + low
        norms = self.norms
        if norms is None:
            # As in the DoRA paper, the norm is a constant: its gradient changes little.
            norms = _column_norms(*jax.lax.stop_gradient((w, self)))
        base = quant.dot(inputs, w, y.dtype) if drops else y
        return _rescaled(y, base, low, self.magnitude / norms)


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
    """Returns variables with a new adapter beside every target weight.

    The new adapters leave the model's outputs unchanged.

    Args:
      variables: Variables of a model, whose weights may be quantised.
      rank: Rank of the adapters.
      alpha: Adapters are scaled by alpha / rank, or by alpha / sqrt(rank) with "rslora".
      targets: "all-linear", "attention", the name of a module as PEFT has it, such as "q_proj", or
        a list of such names and of patterns over the paths of `params`.
      key: Random key for the initial values of `a`.
      dropout: Fraction of its input that an adapter drops in training.
      variant: One of "lora", "rslora" and "dora".
      init: "default" takes a uniform `a` and b = 0. "pissa" moves the principal singular directions
        of each weight into its adapter; quantised weights do not support it.

    Returns:
      New variables, with the collection "lora" and, with "pissa", with changed weights.
    """
    _check(rank, alpha, dropout, variant, init)
    check_variables(variables)
    if not isinstance(key, jax.Array):
        raise UserError(f"key is {typed(key)}; expected a key such as jax.random.key(0)")
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
    """Returns variables without adapters, with each adapter merged into its weight.

    A quantised weight with an adapter becomes an unquantised one, in the dtype of the embedding.
    """
    check_variables(variables)
    params = quant.by_path(variables["params"])
    plain = embedding(params).dtype
    for path, adapter in adapters(variables).items():
        w = params[path]
        params[path] = merged(w, adapter, plain if quant.is_quantized(w) else w.dtype)
    rest = {name: leaves for name, leaves in variables.items() if name != "lora"}
    return rest | {"params": tree.unflatten(params)}


def with_norms(variables: Mapping) -> Mapping:
    """Returns variables whose DoRA adapters hold their column norms, for decoding.

    Without them, every product computes the norms of all of its columns anew, which takes more time
    than the product itself if there are few tokens. They are right for these weights only.
    """
    found = adapters(variables)
    params = quant.by_path(variables["params"])
    scaled = {path: params[path] for path, each in found.items() if each.magnitude is not None}
    if not scaled:
        return variables
    norms = _all_norms(scaled, {path: found[path] for path in scaled})
    ready = {path: found[path].replace(norms=each) for path, each in norms.items()}
    return {**variables, "lora": tree.unflatten(found | ready)}


def embedding(params: Mapping[str, Any]) -> Any:
    """Returns the token embedding of a text or vision-language model, given parameters by path."""
    return next(leaf for path, leaf in params.items() if re.fullmatch(EMBEDDING, path))


def adapters(variables: Mapping) -> dict[str, Lora]:
    """Returns adapters by the path of their weight in `params`."""
    found = variables.get("lora") or {}
    return tree.flatten(found, is_leaf=lambda node: isinstance(node, Lora))


def one_layer(leaf: Any, layer: int | None) -> Any:
    """Returns one layer of a stacked weight or adapter, or all of it if `layer` is None."""
    return leaf if layer is None else jax.tree.map(operator.itemgetter(layer), leaf)


@partial(jax.jit, static_argnames="dtype")
def merged(w: Any, adapter: Lora, dtype: Any) -> jax.Array:  # [..., in, out]
    """Returns a weight with its adapter merged in, computed in float32, one layer at a time."""
    if w.ndim > 2:
        return jax.lax.map(lambda each: merged(*each, dtype), (w, adapter))
    whole = w.astype(jnp.float32) + _product(adapter)
    if adapter.magnitude is not None:
        whole = whole * (adapter.magnitude / jnp.linalg.norm(whole, axis=-2))
    return whole.astype(dtype)


def _check(rank: int, alpha: float, dropout: float, variant: str, init: str) -> None:
    if type(rank) is not int or not 1 <= rank <= LARGEST_RANK:
        raise UserError(f"rank {rank!r}: expected a positive integer of at most {LARGEST_RANK:,}")
    if not abs(alpha) <= LARGEST_SCALE:
        raise UserError(f"alpha {alpha!r}: expected a number of at most {LARGEST_SCALE:g}")
    if not 0 <= dropout < 1:
        raise UserError(f"dropout {dropout!r}: expected a number from 0 to less than 1")
    for name, value, known in (("variant", variant, VARIANTS), ("init", init, INITS)):
        if value not in known:
            raise UserError(f"{name} {value!r}: expected one of {', '.join(known)}")


def _targeted(params: Mapping, targets: str | Sequence[str]) -> list[str]:
    """Returns the paths of target weights.

    Raises ValueError if a pattern matches no path, or one that is not the weight of a linear map.
    """
    names = [targets] if isinstance(targets, str) else targets
    patterns = [modules.pattern(name, modules.WEIGHT) for name in names]
    if isinstance(targets, str) and patterns == [targets]:
        raise UserError(
            f"targets {targets!r}: expected {', '.join(TARGETS)}, the name of a module such as"
            " q_proj, or a list of names and patterns"
        )
    rules = [*((pattern, True) for pattern in patterns), (r".*", False)]
    chosen = [path for path, take in tree.match(rules, params).items() if take]
    flat = [path for path in chosen if not path.endswith("/w") or re.fullmatch(EMBEDDING, path)]
    if flat:
        raise UserError(f"no adapter can be added to {', '.join(flat)}: not a linear map")
    return chosen


def _new(w: Any, rank: int, scale: float, dropout: float, key: jax.Array) -> Lora:
    *layers, inside, outside = w.shape
    bound = inside**-0.5
    return Lora(
        a=jax.random.uniform(key, (*layers, inside, rank), jnp.float32, -bound, bound),
        b=jnp.zeros((*layers, rank, outside), jnp.float32),
        scale=jnp.full(layers, scale, jnp.float32),
        dropout=jnp.full(layers, dropout, jnp.float32) if dropout else None,
    )


def _principal(w: Any, adapter: Lora) -> tuple[Lora, jax.Array]:
    """Returns the top singular directions of a weight as a PiSSA adapter, and the remainder."""
    if quant.is_quantized(w):
        raise UserError(
            "init='pissa' subtracts the adapter from the weights, and quantised weights cannot be "
            "changed: load the base without quant, or use init='default'"
        )
    return _decomposed(w, adapter)


@jax.jit
def _decomposed(w: jax.Array, adapter: Lora) -> tuple[Lora, jax.Array]:
    if w.ndim > 2:  # one layer at a time, as a decomposition takes several times the memory
        return jax.lax.map(lambda each: _decomposed(*each), (w, adapter))
    rank = adapter.a.shape[-1]
    u, s, vt = jnp.linalg.svd(w.astype(jnp.float32), full_matrices=False)
    root = jnp.sqrt(s[:rank] / adapter.scale)
    adapter = adapter.replace(a=u[:, :rank] * root, b=root[:, None] * vt[:rank])
    return adapter, (w.astype(jnp.float32) - _product(adapter)).astype(w.dtype)


def _product(adapter: Lora) -> jax.Array:  # [..., in, out]
    # At full precision also where activations are not: it is compared with, or added to, weights.
    whole = jnp.matmul(adapter.a, adapter.b, precision="highest")
    return adapter.scale[..., None, None] * whole


def _column_norms(w: Any, adapter: Lora) -> jax.Array:  # [..., out]
    if w.ndim > 2:  # one layer at a time, as a dequantised weight takes several times the memory
        return jax.lax.map(lambda each: _column_norms(*each), (w, adapter))
    return jnp.linalg.norm(w.astype(jnp.float32) + _product(adapter), axis=-2)


@jax.jit
def _all_norms(weights: Mapping[str, Any], adapters: Mapping[str, Lora]) -> dict[str, jax.Array]:
    return {path: _column_norms(w, adapters[path]) for path, w in weights.items()}


# For the backward pass its inputs are kept, not their float32 copies.
@partial(jax.checkpoint, prevent_cse=False)
def _rescaled(y: jax.Array, base: jax.Array, low: jax.Array, ratio: jax.Array) -> jax.Array:
    """Returns y + (ratio - 1) · base + ratio · low, computed in float32, in the dtype of `y`."""
    wide, base, low = (each.astype(jnp.float32) for each in (y, base, low))
    return (wide + (ratio - 1) * base + ratio * low).astype(y.dtype)


def _drop(x: jax.Array, share: jax.Array, key: jax.Array, rows: tuple[int, ...]) -> jax.Array:
    grown = (x.astype(jnp.float32) * (1 / (1 - share))).astype(x.dtype)
    return jnp.where(_kept(rows, x.shape[1], share, key), grown, 0)


def _kept(
    rows: tuple[int, ...], width: int, share: jax.Array, key: jax.Array
) -> jax.Array:  # bool[n, width], with n the product of `rows`
    """Returns a dropout mask, False at a random fraction `share` of elements.

    Each element is decided by a hash of its index, seeded by the key. This is several times cheaper
    than drawing all bits with `jax.random`, and XLA fuses it with the surrounding arithmetic, so
    that the mask is never stored in memory.
    """
    first, second = jax.random.bits(key, (2,), jnp.uint32)
    row = first
    for size in rows:
        row = _mixed(row[..., None] ^ jnp.arange(size, dtype=jnp.uint32)) + second
    column = jnp.arange(width, dtype=jnp.uint32)
    word = _mixed(_mixed(row.reshape(-1, 1) ^ column) + second)
    return word >= (share * 2.0**32).astype(jnp.uint32)


def _mixed(word: jax.Array) -> jax.Array:  # uint32[...]
    """Applies the finaliser of MurmurHash3, by which every input bit affects every output bit."""
    word = (word ^ (word >> 16)) * jnp.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
    return word ^ (word >> 16)
