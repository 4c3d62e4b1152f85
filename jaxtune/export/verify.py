"""Compares two models on rows: an exported one, loaded afresh, with the one in memory.

The outputs of a model are kept on the host, so that the next model has the device memory to itself.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import numpy as np

from jaxtune.data import images
from jaxtune.data.batches import Batch, collate
from jaxtune.data.errors import RowError
from jaxtune.data.examples import Example, RowEncoder
from jaxtune.data.sources import Source
from jaxtune.decoding import requests
from jaxtune.decoding.generate import completions
from jaxtune.decoding.requests import Completion
from jaxtune.display.errors import UserError
from jaxtune.export.distance import distance
from jaxtune.models import forward
from jaxtune.models.layout import arrange
from jaxtune.models.paligemma import Model
from jaxtune.models.programs import program
from jaxtune.quant.precision import AUTO
from jaxtune.sharding import to_host

# Largest difference of logits, relative to their standard deviation, between models with the same
# weights: only the order of summation differs. Against transformers it is below 5e-5 in float32.
# With the 8 bits of bfloat16, one rounding is 4e-3, and a layer has several.
LIMITS = {"float32": 1e-4, "bfloat16": 2e-2}
PLACES = 16  # compared positions of a row; with a vocabulary of 262,144, each takes 1 MB
OF_LIMITS = ("ties", "limit")
NEW = 64  # maximum tokens of an answer
LENGTH = 256  # maximum tokens of a row, without those of its pictures


@dataclass(frozen=True)
class ComparisonRows:
    """Inputs to compare two models on: positions for their logits, and prompts for answers."""

    batch: Batch  # the padded rows; their scored positions are compared
    prompts: list[list[int]]
    images: list[np.ndarray] | None  # float32[I, S, S, 3] for each row
    about: str  # origin of the rows, for messages and the report
    new: int  # maximum tokens of an answer
    stops: tuple[int, ...] = ()  # tokens that end an answer

    @property
    def counted(self) -> np.ndarray:  # bool[B, K]
        """True where a position is compared, False where it pads a row with fewer."""
        return self.batch.weights > 0


@dataclass(frozen=True)
class ModelOutputs:
    """Outputs of a model on `ComparisonRows`."""

    logits: np.ndarray  # float32[N, V], at the compared positions of all rows
    answers: list[Completion]


@dataclass(frozen=True)
class Comparison:
    """Difference between the outputs of a model and the expected ones."""

    logits: float  # largest difference, divided by the standard deviation of the expected ones
    kl: float  # mean KL divergence, in nats
    agreement: float  # fraction of positions with the same most likely token
    positions: int
    answers: int
    alike: int  # answers with the same tokens
    ties: int  # other answers, which first differ between tokens equally likely within the limit
    limit: float  # maximum of `logits` for the same model

    @property
    def kept(self) -> bool:
        """Whether the two are the same model, up to rounding."""
        return self.logits <= self.limit and self.alike + self.ties == self.answers

    def __str__(self) -> str:
        return (
            f"logits differ by at most {self.logits:.1e} standard deviations, KL {self.kl:.1e} "
            f"nats, same most likely token at {self.agreement:.2%} of {self.positions} positions, "
            f"{self.alike} of {self.answers} answers identical"
        )

    def told(self) -> dict[str, Any]:
        """Returns the fields and `kept` as a dictionary for JSON."""
        return asdict(self) | {"kept": self.kept}

    def moved(self) -> dict[str, Any]:
        """Returns the fields that need no limit, to report an intended change such as merging."""
        return {name: value for name, value in asdict(self).items() if name not in OF_LIMITS}


@dataclass(frozen=True)
class Same:
    """A model whose arrays, read back, equal those in memory, so that its outputs are the same."""

    arrays: int
    positions: int  # at which its logits were computed, and are finite

    def __str__(self) -> str:
        return (
            f"all {self.arrays:,} arrays are equal to those in memory, and logits are finite at "
            f"{self.positions} positions"
        )


def rows(
    source: Source, encoder: RowEncoder, model: Model, about: str, new: int, count: int = 8
) -> ComparisonRows:
    """Returns the first usable rows of a source, cut if they are long.

    Args:
      source: The rows; those that raise a `RowError` are skipped.
      encoder: Encodes rows into examples.
      model: Limits the length of rows and answers to its context length.
      about: Origin of the rows, for messages and the report.
      new: Maximum tokens of an answer; at most `NEW` are used.
      count: Maximum number of rows.

    Returns:
      The rows; no row at all raises a ValueError.
    """
    new = min(new, NEW, model.config.context // 2)
    found: list[Example] = []
    for number in range(len(source)):
        try:
            found.append(encoder(source[number], source.place(number)))
        except RowError:
            continue  # the survey has reported it
        if len(found) == count:
            break
    if not found:
        raise UserError(f"{about}: no usable rows to compare on")
    side = encoder.pictures.size if encoder.pictures else 0
    beside = encoder.pictures.tokens * max(len(each.images) for each in found) if side else 0
    longest = min(LENGTH + beside, model.config.context - new)
    seen = [_pixels(each, side) for each in found] if side else None
    given = _gathered([_cut(each, longest) for each in found], about, new)
    return replace(given, images=seen, stops=encoder.tokenizer.stops)


def random_rows(model: Model, count: int = 4, length: int = 32, new: int = 16) -> ComparisonRows:
    """Returns rows of random tokens, for configs without readable rows.

    Args:
      model: Gives the vocabulary; if it takes pictures, each row gets a random one.
      count: Number of rows.
      length: Tokens of a row, without those of its picture.
      new: Maximum tokens of an answer.

    Returns:
      The rows; the second half of the tokens of each is scored.
    """
    random = np.random.default_rng(0)
    length = min(length, model.config.context - new)
    shape = (count, length)
    tokens = random.integers(3, model.config.vocabulary, shape).astype(np.int32)
    scored = np.arange(length) >= length // 2
    seen = None
    if wants := model.pictures:
        placeholders = np.full((count, wants.tokens), wants.token, np.int32)
        tokens = np.concatenate([placeholders, tokens], axis=1)
        scored = np.pad(scored, (wants.tokens, 0))
        size = (count, 1, wants.side, wants.side, 3)
        seen = list(random.uniform(-1, 1, size).astype(np.float32))
    causal = scored if model.pictures else None
    examples = [Example(each, scored, causal, "random tokens") for each in tokens]
    return replace(_gathered(examples, "random tokens", new), images=seen)


def _pixels(example: Example, side: int) -> np.ndarray:  # [I, S, S, 3]
    return np.stack([images.read(each, side, example.place) for each in example.images])


def _cut(example: Example, longest: int) -> Example:
    """Returns the start of an example; if nothing in it is scored, its last tokens become so."""
    tokens, scored = example.tokens[:longest], example.scored[:longest]
    if not scored.any():
        scored = np.arange(len(tokens)) >= max(1, len(tokens) - PLACES)
    causal = None if example.causal is None else example.causal[:longest]
    return replace(example, tokens=tokens, scored=scored, causal=causal)


def _gathered(examples: Sequence[Example], about: str, new: int) -> ComparisonRows:
    """Pads examples on the right; the tokens before the first scored one are its prompt."""
    batch = collate(
        [[_thinned(each)] for each in examples],
        shape=(len(examples), max(len(each.tokens) for each in examples), PLACES),
        full_prefix=examples[0].causal is not None,
    )
    prompts = [each.tokens[: np.argmax(each.scored)].tolist() for each in examples]
    return ComparisonRows(batch, prompts, None, about, new)


def _thinned(example: Example) -> Example:
    """Returns an example with at most `PLACES` of its scored tokens, evenly spaced, scored."""
    places = np.flatnonzero(example.scored)
    places = places[np.linspace(0, len(places) - 1, min(PLACES, len(places))).astype(int)]
    return replace(example, scored=np.isin(np.arange(len(example.tokens)), places))


def observed(model: Model, variables: Mapping, given: ComparisonRows) -> ModelOutputs:
    """Computes a model's logits at the compared positions and its greedy answers to the prompts."""
    return ModelOutputs(logits(model, variables, given), answers(model, variables, given))


def logits(model: Model, variables: Mapping, given: ComparisonRows) -> np.ndarray:  # float32[N, V]
    """Computes a model's logits at the compared positions; raises UserError if any is not finite.

    Products are as precise as the dtype of the model, whichever precision it trains with.
    """
    pixels = None if given.images is None else _side_by_side(given.images)
    batch = given.batch
    asked = (batch.tokens, pixels, batch.valid, batch.causal, batch.where)
    found = to_host(_logits(model.clone(precision=AUTO), variables, *asked))[given.counted]
    if not np.isfinite(found).all():
        raise UserError(f"logits with infinities or NaNs on {given.about} cannot be compared")
    return found


def answers(model: Model, variables: Mapping, given: ComparisonRows) -> list[Completion]:
    """Returns a model's greedy answers to the prompts, in the precision of `logits`."""
    return completions(
        model.clone(precision=AUTO),
        variables,
        given.prompts,
        given.new,
        images=given.images,
        stops=given.stops,
    )


def _side_by_side(pictures: Sequence[np.ndarray]) -> np.ndarray:  # [B, I, S, S, 3]
    """Stacks the pictures of all rows, padded with zeros where a row has fewer."""
    most = max(map(len, pictures))
    return np.stack([np.pad(p, [(0, most - len(p)), *[(0, 0)] * 3]) for p in pictures])


@program(static_argnums=0)
def _logits(
    model: Model, variables: Mapping, tokens, pixels, valid, causal, where
) -> jax.Array:  # float32[B, K, V]
    layout = arrange(tokens.shape, valid=valid, causal=causal)
    hidden = forward.hidden_at(model, variables, tokens, layout, where, images=pixels)
    return forward.logits(model, variables, hidden)


def before_switch(
    model: Model, given: ComparisonRows, answers: Sequence[Completion]
) -> list[Completion]:
    """Cuts answers to where longrope switches the angles of all tokens.

    A single forward pass can then reproduce the logits of each answer.
    """
    most = [requests.before_switch(model, prompt, given.new) for prompt in given.prompts]
    return [
        replace(each, tokens=each.tokens[:count], log_probs=each.log_probs[:count])
        for each, count in zip(answers, most, strict=True)
    ]


def compared(expected: ModelOutputs, found: ModelOutputs, limit: float) -> Comparison:
    """Compares the outputs of two models; raises a ValueError if logits are not finite."""
    apart = distance(expected.logits, found.logits)
    nats = 2 * limit * float(expected.logits.std())
    parted = list(_parted(expected.answers, found.answers))
    return Comparison(
        logits=apart.logits,
        kl=apart.kl,
        agreement=apart.agreement,
        positions=apart.positions,
        answers=len(expected.answers),
        alike=len(expected.answers) - len(parted),
        ties=sum(each <= nats for each in parted),
        limit=limit,
    )


def _parted(expected: Sequence[Completion], found: Sequence[Completion]) -> Iterator[float]:
    """Yields, for each pair of answers that differ, the log-probability gap where they first do."""
    for ours, theirs in zip(expected, found, strict=True):
        pairs = zip(ours.tokens, theirs.tokens, strict=False)  # a stop token ends its answer
        place = next((i for i, (one, other) in enumerate(pairs) if one != other), None)
        if place is not None:
            yield abs(ours.log_probs[place] - theirs.log_probs[place])
