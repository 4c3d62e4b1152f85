"""Written files loaded afresh and compared with the model in memory.

What a model makes of rows is kept on the host, so that the next one has the memory to itself.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
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
from jaxtune.export.distance import distance
from jaxtune.models import forward
from jaxtune.models.layout import arrange
from jaxtune.models.paligemma import Model

# How far logits may be apart, over their deviation, where both sides compute with the same numbers:
# what is left is the order of sums. Live transformers stays below 5e-5 in float32; in bfloat16,
# of 8 bits, one rounding is 4e-3, and a layer has several.
LIMITS = {"float32": 1e-4, "bfloat16": 2e-2}
PLACES = 16  # of a row at which logits are compared: with 262,144 tokens each is a megabyte
OF_LIMITS = ("ties", "limit")
NEW = 64  # tokens of an answer
LENGTH = 256  # tokens of a row, beside those of its pictures


@dataclass(frozen=True)
class ComparisonRows:
    """What two models are asked: their logits at some places, and their answers to prompts."""

    batch: Batch  # the rows padded side by side; what it scores are the places compared
    prompts: list[list[int]]
    images: list[np.ndarray] | None  # float32[I, S, S, 3], those of each row
    about: str  # where they are from
    new: int  # tokens of an answer at most
    stops: tuple[int, ...] = ()  # the tokens that end one

    @property
    def counted(self) -> np.ndarray:  # bool[B, K]
        """Whether a place is compared, or fills up a row that has fewer."""
        return self.batch.weights > 0


@dataclass(frozen=True)
class ModelOutputs:
    """What a model makes of rows."""

    logits: np.ndarray  # float32[N, V]
    answers: list[Completion]


@dataclass(frozen=True)
class Comparison:
    """How far what was found is from what was expected."""

    logits: float  # the largest difference of any, over their deviation
    kl: float  # in nats, the mean
    agreement: float  # the share of places with the same likeliest token
    positions: int
    answers: int
    alike: int  # answers of the same tokens
    ties: int  # others, which part where two tokens are equally likely up to the limit
    limit: float

    @property
    def kept(self) -> bool:
        """Whether the two are the same model, up to what rounding explains."""
        return self.logits <= self.limit and self.alike + self.ties == self.answers

    def __str__(self) -> str:
        return (
            f"logits within {self.logits:.1e} of their deviation, KL {self.kl:.1e} nats, "
            f"likeliest token the same at {self.agreement:.2%} of {self.positions} places, "
            f"{self.alike} of {self.answers} answers alike"
        )

    def told(self) -> dict[str, Any]:
        """The same as JSON has it."""
        return asdict(self) | {"kept": self.kept}

    def moved(self) -> dict[str, Any]:
        """The same where no limit is kept to: how far something moved predictions."""
        return {name: value for name, value in asdict(self).items() if name not in OF_LIMITS}


def rows(
    source: Source, encoder: RowEncoder, model: Model, about: str, new: int, count: int = 8
) -> ComparisonRows:
    """The first rows of a source that can be used, cut where they are long."""
    new = min(new, NEW, model.config.context // 2)
    found: list[Example] = []
    for number in range(len(source)):
        try:
            found.append(encoder(source[number], source.place(number)))
        except RowError:
            continue  # the survey has told of it
        if len(found) == count:
            break
    if not found:
        raise ValueError(f"{about}: there is no row to compare on")
    side = encoder.pictures.size if encoder.pictures else 0
    beside = encoder.pictures.tokens * max(len(each.images) for each in found) if side else 0
    longest = min(LENGTH + beside, model.config.context - new)
    seen = [_pixels(each, side) for each in found] if side else None
    given = _gathered([_cut(each, longest) for each in found], about, new)
    return replace(given, images=seen, stops=encoder.tokenizer.stops)


def random_rows(model: Model, count: int = 4, length: int = 32, new: int = 16) -> ComparisonRows:
    """Tokens by chance, and pictures if the model sees any, where a config has no rows to offer."""
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
    """A row's beginning; where nothing of that is scored, its end counts as if it were."""
    tokens, scored = example.tokens[:longest], example.scored[:longest]
    if not scored.any():
        scored = np.arange(len(tokens)) >= max(1, len(tokens) - PLACES)
    causal = None if example.causal is None else example.causal[:longest]
    return replace(example, tokens=tokens, scored=scored, causal=causal)


def _gathered(examples: Sequence[Example], about: str, new: int) -> ComparisonRows:
    """Rows side by side, padded behind."""
    batch = collate(
        [[_thinned(each)] for each in examples],
        shape=(len(examples), max(len(each.tokens) for each in examples), PLACES),
        full_prefix=examples[0].causal is not None,
    )
    prompts = [each.tokens[: np.argmax(each.scored)].tolist() for each in examples]
    return ComparisonRows(batch, prompts, None, about, new)


def _thinned(example: Example) -> Example:
    """An example of which at most `PLACES` tokens are scored, from the first to the last."""
    places = np.flatnonzero(example.scored)
    places = places[np.linspace(0, len(places) - 1, min(PLACES, len(places))).astype(int)]
    return replace(example, scored=np.isin(np.arange(len(example.tokens)), places))


def observed(model: Model, variables: Mapping, given: ComparisonRows) -> ModelOutputs:
    """A model's logits at the rows' places, and its likeliest answers to their prompts."""
    pixels = None if given.images is None else _side_by_side(given.images)
    batch = given.batch
    asked = (batch.tokens, pixels, batch.valid, batch.causal, batch.where)
    logits = np.asarray(_logits(model, variables, *asked))
    answers = completions(
        model, variables, given.prompts, given.new, images=given.images, stops=given.stops
    )
    return ModelOutputs(logits[given.counted], answers)


def _side_by_side(pictures: Sequence[np.ndarray]) -> np.ndarray:  # [B, I, S, S, 3]
    """Those of each row, filled up with dark ones."""
    most = max(map(len, pictures))
    return np.stack([np.pad(p, [(0, most - len(p)), *[(0, 0)] * 3]) for p in pictures])


@partial(jax.jit, static_argnums=0)
def _logits(
    model: Model, variables: Mapping, tokens, pixels, valid, causal, where
) -> jax.Array:  # float32[B, K, V]
    layout = arrange(tokens.shape, valid=valid, causal=causal)
    hidden = forward.hidden_at(model, variables, tokens, layout, where, images=pixels)
    return forward.logits(model, variables, hidden)


def before_switch(
    model: Model, given: ComparisonRows, answers: Sequence[Completion]
) -> list[Completion]:
    """Answers up to where the angles of all tokens change, so that one pass gives them again."""
    most = [requests.before_switch(model, prompt, given.new) for prompt in given.prompts]
    return [
        replace(each, tokens=each.tokens[:count], chances=each.chances[:count])
        for each, count in zip(answers, most, strict=True)
    ]


def compared(expected: ModelOutputs, found: ModelOutputs, limit: float) -> Comparison:
    """How far one model is from another; logits that are no numbers are an error."""
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
    """Of answers that differ, how much likelier one of the first tokens that do was, in nats."""
    for ours, theirs in zip(expected, found, strict=True):
        pairs = zip(ours.tokens, theirs.tokens, strict=False)  # a stop ends the one it is in
        place = next((i for i, (one, other) in enumerate(pairs) if one != other), None)
        if place is not None:
            yield abs(ours.chances[place] - theirs.chances[place])
