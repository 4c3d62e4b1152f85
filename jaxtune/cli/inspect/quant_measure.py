"""Quantises a checkpoint's weights, and measures the errors in weights and predictions."""

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
from jaxtune.display.errors import UserError
from jaxtune.export.distance import SAMPLE, Distance, distance
from jaxtune.families import names
from jaxtune.models.programs import program
from jaxtune.quant import LINEAR, Quantized, dequantize, nbytes

TOKENS = 512  # of a text, for comparing predictions: attention scores take TOKENS² values a head
KEPT = 2  # largest number of leaves that the suggestion keeps unquantised
Tell = Callable[[str], None]  # called with a progress text


def quant_report(
    described: Described, asked: Sequence[str], text: str | None, tell: Tell
) -> QuantReport:
    """Returns a checkpoint's size as each kind, and measurements of the requested kinds.

    Args:
      described: Checkpoint to report on.
      asked: Kinds to measure; without any, no weights are read.
      text: Text to compare predictions on; None takes the sample text.
      tell: Called with a progress text.

    Returns:
      Sizes of all kinds, computed from shapes, and one measurement per requested kind.
    """
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
    """Measures the effect of quantised kinds on weights and predictions.

    The weights are read once per kind. For their errors, one layer at a time is in memory.
    Predictions need the whole model (in float32 on a CPU, elsewhere as stored), its quantised
    linear maps at one byte per code, and four copies of float32 logits for `TOKENS` tokens.

    Args:
      described: Checkpoint whose files are on this machine in full precision.
      asked: Kinds to measure.
      text: Text to compare predictions on; None takes the sample text.
      tell: Called with a progress text.

    Returns:
      One measurement per kind, and a phrase on the text, or on why predictions are not compared.
    """
    refuse_unmeasurable(described, asked)
    tokens, about = compared_tokens(described, text)
    with described.stored:
        predict = partial(_logits, *_plain(described), np.int32([tokens])) if tokens else None
        found = tuple(_measure_kind(described, kind, predict, tell) for kind in asked)
    return found, about


def error(w: np.ndarray, quantized: Quantized) -> Error:  # [in, out]
    """Returns the error of a quantised weight against the original."""
    original = w.astype(np.float32)
    wrong = original - np.asarray(dequantize(quantized))
    # einsum converts a few values at a time to float64, not whole arrays.
    squares = [np.einsum("io,io", each, each, dtype=np.float64) for each in (wrong, original)]
    return Error(w.size, *map(float, (np.abs(wrong).sum(dtype=np.float64), *squares)))


def refuse_unmeasurable(described: Described, asked: Sequence[str]) -> None:
    """Raises CheckpointError for weights stored in 4 bits, or not on this machine."""
    kind = asked[0]
    if described.packed:
        raise CheckpointError(
            f"{described.directory} is already stored in 4 bits: measure {kind} on the "
            "full-precision checkpoint that it was made from"
        )
    needed = {described.stored.tensors[piece.theirs].file for piece in described.parts}
    missing = sorted(file.name for file in needed if not file.exists())
    if missing:
        raise CheckpointError(
            f"measuring {kind} reads the weights, but these files are not on this machine: "
            f"{few(missing, len(missing))}; download the checkpoint first, or give --quant without "
            "kinds to see sizes only"
        )


def compared_tokens(described: Described, text: str | None) -> tuple[list[int], str]:
    """Returns token ids to compare predictions on, and a phrase that describes them.

    If there is no usable tokenizer, returns no ids, and the reason.
    """
    try:
        tokenizer = Tokenizer.open(described.directory)
    except DataError as problem:
        return [], f"not compared: {problem}"
    ids = tokenizer.encode(SAMPLE if text is None else text)
    if len(ids) < 2:
        raise UserError(
            "the text is too short to compare predictions on: expected 2 or more tokens, found "
            f"{len(ids)}"
        )
    limit = min(TOKENS, described.model.config.context)
    start = [tokenizer.bos] if tokenizer.adds_bos and tokenizer.bos is not None else []
    taken = [*start, *ids][:limit]
    if max(taken) >= described.model.config.vocabulary:
        return [], (
            "not compared: the tokenizer gives ids beyond the embedding's "
            f"{described.model.config.vocabulary:,} rows"
        )
    source = "the sample text" if text is None else "the text"
    first = f"the first {limit} of " if len(taken) < len(start + ids) else ""
    return taken, f"{first}{len(start + ids):,} tokens of {source}"


def _plain(described: Described) -> tuple[Any, dict[str, Any]]:
    """Returns the model, set to float32 computation and plain attention, and its weights."""
    # A CPU has no bfloat16 arithmetic: float32 copies of all layers would be held beside them.
    dtype = "float32" if jax.default_backend() == "cpu" else "auto"
    model, variables = load.load(described.directory, dtype)
    plain = model.clone(attention="plain", dtype=jnp.float32)
    return plain, tree.flatten(variables["params"])


def _measure_kind(
    described: Described, kind: str, predict: Callable | None, tell: Tell
) -> Measured:
    """Measures one kind, and with `predict` the KL of all leaves together and of each alone."""
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
    """Returns the error of each layer of a leaf, and with `keep` the quantised leaf."""
    stored, errors, layers = described.stored, [], []
    for piece in names.by_leaf(described.parts)[path]:
        made = placing.quantized(stored, {}, piece, kind)
        errors.append(error(placing.oriented(stored.read, piece), made))
        stored.release(piece.theirs)
        layers += [made] if keep else []
    if not keep:
        return errors, None
    return errors, jax.tree.map(lambda *parts: jnp.asarray(np.stack(parts)), *layers)


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
    """A weight both plain and quantised; `chosen` selects one at run time, without recompiling."""

    plain: Any  # [L, in, out], as all weights of layers
    quantized: Quantized
    chosen: jax.Array  # bool[L], True to use the quantised weight

    def astype(self, dtype: Any) -> jax.Array:  # [in, out]
        """Returns the selected weight of one layer; `Linear` calls this to get its weight."""
        ways = (partial(dequantize, self.quantized, dtype), partial(self.plain.astype, dtype))
        return jax.lax.cond(self.chosen, *ways)


def _logits(
    model: Any,
    plain: Mapping[str, Any],
    tokens: np.ndarray,  # int32[1, T]
    quantized: Mapping[str, Quantized],
    chosen: Collection[str],
) -> jax.Array:  # float32[1, T, V]
    """Returns a model's logits with the chosen leaves quantised."""
    either = {
        path: Either(plain[path], weight, np.full(len(weight.codes), path in chosen))
        for path, weight in quantized.items()
    }
    return _apply(model, {"params": tree.unflatten({**plain, **either})}, tokens)


@program(static_argnums=0)
def _apply(model: Any, variables: dict, tokens: jax.Array) -> jax.Array:
    return model.apply(variables, tokens)


def _from_full_precision(predict: Callable) -> Callable[[Collection[str]], Distance]:
    """Returns a function that measures how far predictions move if given leaves are quantised."""
    reference = predict(())
    return lambda chosen: distance(reference, predict(chosen))


def _advice(leaves: Sequence[Leaf], kind: str, apart: Callable) -> Advice | None:
    """Suggests keeping the leaf with the most KL per byte, and the next if it has half as much.

    Returns None if no leaf alone changes predictions.
    """

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
