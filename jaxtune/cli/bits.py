"""What quantising a checkpoint saves, and what it costs."""

import math
import operator
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxtune import tree
from jaxtune.checkpoint import load, placing
from jaxtune.checkpoint.formats.safetensors import CheckpointError
from jaxtune.checkpoint.load import Described
from jaxtune.data.errors import DataError
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.display.columns import few, grid, labelled, size_text
from jaxtune.export.distance import SAMPLE, Difference, compare
from jaxtune.families import names
from jaxtune.quant import KINDS, LINEAR, MADE, Quantized, dequantize, kinds, nbytes

PLAIN = ("float32", "bfloat16")
REST = "bfloat16"  # what is not quantised
TOKENS = 512  # of a text that predictions are compared on: each has a score for every other token
KEPT = 2  # leaves at most that are suggested to be kept
NUMBERS = ("linear maps", "bits a weight", "whole model", "bits a parameter")
NUMBERS += ("bits", "mean |error|", "relative", "KL alone", "to keep")

Shapes = Mapping[str, names.Shape]
Tell = Callable[[str], None]  # how far it is


@dataclass(frozen=True)
class Size:
    """What a model takes with its linear maps held as a kind; beside a quantised one, see `REST`"""

    kind: str
    linear_bytes: int
    linear_bits: float  # a weight
    bytes: int
    bits: float  # a parameter


@dataclass(frozen=True)
class Error:
    """How far a quantised weight is from its original; errors of several leaves add up."""

    values: int
    absolute: float  # sum of |error|
    squares: float  # sum of error²
    norm: float  # sum of weight²

    def __add__(self, other: "Error") -> "Error":
        return Error(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    @property
    def mean_absolute(self) -> float:
        """The mean of |error|."""
        return self.absolute / self.values

    @property
    def relative(self) -> float:
        """The error's norm over the weight's."""
        return math.sqrt(self.squares / self.norm) if self.norm else 0.0


@dataclass(frozen=True)
class Leaf:
    """A leaf, its layers together, when quantised."""

    path: str
    bits: float  # a weight
    mean_absolute: float  # error
    relative: float  # the error's norm over the weight's
    layers: tuple[float, ...]  # the same of each
    to_keep: int  # bytes more if it is not quantised
    kl: float | None  # of predictions, if this leaf alone is quantised


@dataclass(frozen=True)
class Advice:
    """Leaves that are worth their bytes unquantised, and what keeping them gives."""

    keep: tuple[str, ...]
    bytes: int  # more
    predictions: Difference
    quant: tuple[tuple[str, str | None], ...]  # rules, as `load` takes them


@dataclass(frozen=True)
class Measured:
    """What one kind does to the weights and, with a text, to predictions."""

    kind: str
    mean_absolute: float
    relative: float
    leaves: tuple[Leaf, ...]
    predictions: Difference | None
    advice: Advice | None


@dataclass(frozen=True)
class Bits:
    """A checkpoint's sizes, and what was measured of the kinds that were asked for."""

    parameters: int
    linear: int  # of them, those that are quantised
    sizes: tuple[Size, ...]
    measured: tuple[Measured, ...]
    text: str  # what predictions were compared on, or why they were not


# Sizes


def of(described: Described, asked: Sequence[str], text: str | None, tell: Tell) -> Bits:
    """What a checkpoint takes as each kind, and what each kind that is asked for does to it."""
    shapes = described.shapes
    linear = [shapes[path] for path in _linear(shapes)]
    measured, about = measure(described, asked, text, tell) if asked else ((), "")
    return Bits(
        parameters=sum(map(math.prod, shapes.values())),
        linear=sum(map(math.prod, linear)),
        sizes=sizes(shapes),
        measured=measured,
        text=about,
    )


def sizes(shapes: Shapes) -> tuple[Size, ...]:
    """What leaves of these shapes take as each kind."""
    return tuple(_size(shapes, kind) for kind in (*PLAIN, "int8", "int4", "nf4", "nf4-double"))


def _size(shapes: Shapes, kind: str) -> Size:
    linear = _linear(shapes)
    held = {path: kind if path in linear or kind in PLAIN else REST for path in shapes}
    taken = {path: _bytes(shape, held[path]) for path, shape in shapes.items()}
    inside = sum(taken[path] for path in linear)
    weights = sum(math.prod(shapes[path]) for path in linear)
    parameters = sum(map(math.prod, shapes.values()))
    whole = sum(taken.values())
    return Size(kind, inside, 8 * inside / weights, whole, 8 * whole / parameters)


def _bytes(shape: names.Shape, kind: str) -> int:
    return nbytes(shape, kind) if kind in KINDS else math.prod(shape) * jnp.dtype(kind).itemsize


def _linear(paths: Collection[str]) -> list[str]:
    """The leaves that are quantised where rules do not say otherwise."""
    return list(kinds(paths, MADE[0]))


# Measuring


def known(asked: Sequence[str], text: str | os.PathLike | None) -> None:
    """Stop at a kind that is none, and at a text that nothing is measured on."""
    for kind in asked:
        if kind not in MADE:
            raise ValueError(f"quant {kind!r}: expected one of {', '.join(MADE)}")
    if text is not None and not asked:
        raise ValueError("a text is for measuring: say what to quantise to, as in --quant=nf4")


def read_text(file: str | os.PathLike) -> str:
    """A text to compare predictions on."""
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8")
    except UnicodeDecodeError as problem:
        raise ValueError(f"{file} is no text in UTF-8 ({problem})") from None
    if not text.strip():
        raise ValueError(f"{file} is empty: some text to compare predictions on was expected")
    return text


def measure(
    described: Described, asked: Sequence[str], text: str | None, tell: Tell
) -> tuple[tuple[Measured, ...], str]:
    """What kinds do to weights and predictions, and a word on the text these were compared on.

    The weights are read once for each kind, and for their errors a layer at a time is in memory.
    Predictions take the whole model (on a CPU in float32, elsewhere as it is stored), beside it its
    linear maps in a kind, a byte a code, and float32 logits of `TOKENS` tokens four times over.
    """
    _refuse_unmeasurable(described, asked)
    tokens, about = _tokens(described, text)
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


def _refuse_unmeasurable(described: Described, asked: Sequence[str]) -> None:
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


def _tokens(described: Described, text: str | None) -> tuple[list[int], str]:
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
    for path in _linear(described.shapes):
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
        to_keep=_bytes(shape, REST) - taken,
        kl=kl,
    )


def _total(errors: Sequence[Error]) -> Error:
    return reduce(operator.add, errors)


# Predictions


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


def _from_full_precision(predict: Callable) -> Callable[[Collection[str]], Difference]:
    """How far predictions are from those of full precision, for any choice of leaves."""
    reference = predict(())
    return lambda chosen: compare(reference, predict(chosen))


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


# At the terminal


def sections(found: Bits) -> Iterator[list[str]]:
    """Paragraphs of lines: sizes, then what was measured of each kind."""
    said = (
        f"the linear maps of layers, {found.linear:,} of {found.parameters:,} parameters, can be "
        f"quantised; all else is then {REST}"
    )
    yield [*labelled({"quantised": said}), *grid(*_size_rows(found), NUMBERS)]
    for measured in found.measured:
        yield _measured_lines(measured, found.text)


def _size_rows(found: Bits) -> tuple[list[str], list[dict[str, str]]]:
    rows = [
        {
            "held as": size.kind,
            "linear maps": size_text(size.linear_bytes),
            "bits a weight": f"{size.linear_bits:.2f}",
            "whole model": size_text(size.bytes),
            "bits a parameter": f"{size.bits:.2f}",
        }
        for size in found.sizes
    ]
    return list(rows[0]), rows


def _measured_lines(measured: Measured, text: str) -> list[str]:
    mean, relative = f"{measured.mean_absolute:.3g}", f"{measured.relative:.2%}"
    said = f"the mean |error| is {mean}, and its norm {relative} of the weights'"
    cells = [_leaf_cells(leaf) for leaf in measured.leaves]
    after = {
        "worst": _worst_layers(measured),
        "predictions": _predictions_text(measured.predictions, text),
    }
    table = grid(list(cells[0]), cells, NUMBERS)
    return [*labelled({measured.kind: said}), *table, *labelled(after), *_advice_lines(measured)]


def _worst_layers(measured: Measured) -> str:
    layers = [
        (relative, f"{leaf.path} {number} ({relative:.2%})")
        for leaf in measured.leaves
        for number, relative in enumerate(leaf.layers)
    ]
    return few([said for _, said in sorted(layers, reverse=True)], 0)


def _leaf_cells(leaf: Leaf) -> dict[str, str]:
    worst = max(range(len(leaf.layers)), key=leaf.layers.__getitem__)
    cells = {
        "leaf": leaf.path,
        "bits": f"{leaf.bits:.2f}",
        "mean |error|": f"{leaf.mean_absolute:.3g}",
        "relative": f"{leaf.relative:.2%}",
        "worst layer": f"{worst} ({leaf.layers[worst]:.2%})",
    }
    if leaf.kl is None:
        return cells
    return cells | {"KL alone": f"{leaf.kl:.3g}", "to keep": size_text(leaf.to_keep)}


def _predictions_text(found: Difference | None, text: str) -> str:
    if found is None:
        return text
    return (
        f"on {text}, the mean KL divergence from full precision is {found.kl:.3g}, the likeliest "
        f"token is the same at {found.agreement:.1%}, and logits are at most {found.logits:.2g} of "
        "their standard deviation apart"
    )


def _advice_lines(measured: Measured) -> list[str]:
    advice = measured.advice
    if advice is None:
        said = "keep no leaf: none changes predictions" if measured.predictions else ""
        return labelled({"suggestion": said})
    said = (
        f"keep {' and '.join(advice.keep)}: {size_text(advice.bytes)} more in {REST}, and the KL "
        f"is {advice.predictions.kl:.3g}; as `quant`:"
    )
    # Each rule in one line, to be copied whole.
    rules = ",\n".join(f"{'':13}{rule!r}" for rule in advice.quant).splitlines()
    rules[0] = f"{'':12}[{rules[0].lstrip()}"
    return [*labelled({"suggestion": said}), *rules[:-1], f"{rules[-1]}]"]
