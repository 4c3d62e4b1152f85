"""Quantises a checkpoint's weights, and measures what that does to them and to predictions."""

import math
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxtune import tree
from jaxtune.checkpoint import load, placing
from jaxtune.checkpoint.formats.safetensors import CheckpointError
from jaxtune.checkpoint.load import Described
from jaxtune.cli.inspect.quant_report import (
    REST,
    Advice,
    Error,
    Leaf,
    Measured,
    QuantReport,
    held_bytes,
    linear_maps,
    sizes,
)
from jaxtune.data.errors import DataError
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.display.columns import few
from jaxtune.export.distance import SAMPLE, Distance, distance
from jaxtune.families import names
from jaxtune.quant import LINEAR, Quantized, dequantize, nbytes

TOKENS = 512  # of a text that predictions are compared on: each has a score for every other token
KEPT = 2  # leaves at most that are suggested to be kept
Tell = Callable[[str], None]  # how far it is


def quant_report(
    described: Described, asked: Sequence[str], text: str | None, tell: Tell
) -> QuantReport:
    """What a checkpoint takes as each kind, and what each kind that is asked for does to it."""
    shapes = described.shapes
    linear = [shapes[path] for path in linear_maps(shapes)]
    measured, about = measure(described, asked, text, tell) if asked else ((), "")
    return QuantReport(
        parameters=sum(map(math.prod, shapes.values())),
        linear=sum(map(math.prod, linear)),
        sizes=sizes(shapes),
        measured=measured,
        text=about,
    )


def measure(
    described: Described, asked: Sequence[str], text: str | None, tell: Tell
) -> tuple[tuple[Measured, ...], str]:
    """What kinds do to weights and predictions, and a word on the text these were compared on.

    The weights are read once for each kind, and for their errors a layer at a time is in memory.
    Predictions take the whole model (on a CPU in float32, elsewhere as it is stored), beside it its
    linear maps in a kind, a byte a code, and float32 logits of `TOKENS` tokens four times over.
    """
    refuse_unmeasurable(described, asked)
    tokens, about = compared_tokens(described, text)
    with described.stored:
        predict = partial(_logits, *_plain(described), np.int32([tokens])) if tokens else None
        found = tuple(_measure_kind(described, kind, predict, tell) for kind in asked)
    return found, about


def error(w: np.ndarray, quantized: Quantized) -> Error:  # [in, out]
    """How far a weight is from what its codes and scales stand for."""
    original = w.astype(np.float32)
    wrong = original - np.asarray(dequantize(quantized))
    # einsum makes float64 of a few values at a time, not of all.
    squares = [np.einsum("io,io", each, each, dtype=np.float64) for each in (wrong, original)]
    return Error(w.size, *map(float, (np.abs(wrong).sum(dtype=np.float64), *squares)))


def refuse_unmeasurable(described: Described, asked: Sequence[str]) -> None:
    kind = asked[0]
    if described.packed:
        raise CheckpointError(
            f"{described.directory} is stored in 4 bits already: what {kind} does can be measured "
            "on the full-precision checkpoint that it was made from"
        )
    needed = {described.stored.tensors[piece.theirs].file for piece in described.parts}
    missing = sorted(file.name for file in needed if not file.exists())
    if missing:
        raise CheckpointError(
            f"measuring {kind} reads the weights, and {few(missing, len(missing))} is not on this "
            "machine: download the checkpoint first, or leave the kind out to see what it would "
            "take"
        )


def compared_tokens(described: Described, text: str | None) -> tuple[list[int], str]:
    """The ids to compare predictions on, and how many of which text; or none, and why."""
    try:
        tokenizer = Tokenizer.open(described.directory)
    except DataError as problem:
        return [], f"not compared: {problem}"
    ids = tokenizer.encode(SAMPLE if text is None else text)
    if len(ids) < 2:
        raise ValueError(
            f"the text is {len(ids)} tokens long: two or more were expected to compare "
            "predictions on"
        )
    most = min(TOKENS, described.model.config.context)
    start = [tokenizer.bos] if tokenizer.adds_bos and tokenizer.bos is not None else []
    taken = [*start, *ids][:most]
    if max(taken) >= described.model.config.vocabulary:
        return [], (
            "not compared: the tokenizer gives ids beyond the embedding's "
            f"{described.model.config.vocabulary:,} rows"
        )
    source = "the sample text" if text is None else "the text"
    first = f"the first {most} of " if len(taken) < len(start + ids) else ""
    return taken, f"{first}{len(start + ids):,} tokens of {source}"


def _plain(described: Described) -> tuple[Any, dict[str, Any]]:
    """The model, which computes in float32 whatever holds its weights, and these by path."""
    # A CPU computes no bfloat16: it would make float32 of all layers, beside what they are held in.
    dtype = "float32" if jax.default_backend() == "cpu" else "auto"
    model, variables = load.load(described.directory, dtype)
    plain = model.clone(attention="plain", dtype=jnp.float32)
    return plain, tree.flatten(variables["params"])


def _measure_kind(
    described: Described, kind: str, predict: Callable | None, tell: Tell
) -> Measured:
    errors, quantized = {}, {}
    for path in linear_maps(described.shapes):
        tell(f"{kind}: {path}")
        errors[path], quantized[path] = _streamed(described, path, kind, keep=predict is not None)
    alone, predictions, advice = {}, None, None
    if predict:
        tell(f"{kind}: predictions")
        apart = _from_full_precision(partial(predict, quantized))
        predictions = apart(quantized)
        alone = {path: apart([path]).kl for path in quantized}
    leaves = tuple(
        _leaf(path, described.shapes[path], kind, layers, alone.get(path))
        for path, layers in errors.items()
    )
    if predict:
        advice = _advice(leaves, kind, apart)
    whole = _total([layer for layers in errors.values() for layer in layers])
    return Measured(kind, whole.mean_absolute, whole.relative, leaves, predictions, advice)


def _streamed(
    described: Described, path: str, kind: str, keep: bool
) -> tuple[list[Error], Quantized | None]:
    """The error of each layer of a leaf, and the leaf quantised, if it is to be kept."""
    stored, errors, layers = described.stored, [], []
    for piece in names.by_leaf(described.parts)[path]:
        made = placing.quantized(stored, {}, piece, kind)
        errors.append(error(placing.oriented(stored.read, piece), made))
        stored.release(piece.theirs)
        layers += [made] if keep else []
    if not keep:
        return errors, None
    return errors, jax.tree.map(_stacked, *layers)


def _stacked(*layers: np.ndarray) -> jax.Array:
    """The layers of an array; codes of 4 bits in a byte each."""
    # A CPU would unpack them anew, those of all layers, whenever the model runs.
    dtype = {"uint4": np.uint8, "int4": np.int8}.get(str(layers[0].dtype), layers[0].dtype)
    return jnp.asarray(np.stack([layer.astype(dtype) for layer in layers]))


def _leaf(
    path: str, shape: names.Shape, kind: str, layers: Sequence[Error], kl: float | None
) -> Leaf:
    whole, taken = _total(layers), nbytes(shape, kind)
    return Leaf(
        path=path,
        bits=8 * taken / math.prod(shape),
        mean_absolute=whole.mean_absolute,
        relative=whole.relative,
        layers=tuple(layer.relative for layer in layers),
        to_keep=held_bytes(shape, REST) - taken,
        kl=kl,
    )


def _total(errors: Sequence[Error]) -> Error:
    return reduce(operator.add, errors)


@struct.dataclass
class Either:
    """A weight that is plain or quantised, as a value says: nothing compiles anew for another."""

    plain: Any  # [L, in, out], as are all weights of layers
    quantized: Quantized
    chosen: jax.Array  # bool[L]: whether the quantised one counts

    def astype(self, dtype: Any) -> jax.Array:  # [in, out]
        """The weight of one layer, as `Linear` asks for it."""
        ways = (partial(dequantize, self.quantized, dtype), partial(self.plain.astype, dtype))
        return jax.lax.cond(self.chosen, *ways)


def _logits(
    model: Any,
    plain: Mapping[str, Any],
    tokens: np.ndarray,  # int32[1, T]
    quantized: Mapping[str, Quantized],
    chosen: Collection[str],
) -> jax.Array:  # float32[1, T, V]
    """A model's predictions with the chosen ones of its leaves quantised."""
    either = {
        path: Either(plain[path], weight, np.full(len(weight.codes), path in chosen))
        for path, weight in quantized.items()
    }
    # A GPU or TPU would multiply float32 in fewer bits.
    with jax.default_matmul_precision("highest"):
        return _apply(model, {"params": tree.unflatten({**plain, **either})}, tokens)


@partial(jax.jit, static_argnums=0)
def _apply(model: Any, variables: dict, tokens: jax.Array) -> jax.Array:
    return model.apply(variables, tokens)


def _from_full_precision(predict: Callable) -> Callable[[Collection[str]], Distance]:
    """How far predictions are from those of full precision, for any choice of leaves."""
    reference = predict(())
    return lambda chosen: distance(reference, predict(chosen))


def _advice(leaves: Sequence[Leaf], kind: str, apart: Callable) -> Advice | None:
    """Keep the leaf that changes predictions most for its bytes, and one that comes near it."""

    def worth(leaf: Leaf) -> float:
        return leaf.kl / max(1, leaf.to_keep)

    first = sorted(leaves, key=worth, reverse=True)[:KEPT]
    kept = [leaf for leaf in first if worth(leaf) > 0 and worth(leaf) >= worth(first[0]) / 2]
    if not kept:
        return None
    keep = tuple(leaf.path for leaf in kept)
    return Advice(
        keep=keep,
        bytes=sum(leaf.to_keep for leaf in kept),
        predictions=apart([leaf.path for leaf in leaves if leaf.path not in keep]),
        quant=(*((path, None) for path in keep), (LINEAR, kind), (".*", None)),
    )
