"""Answers: prompts in, tokens out, one at a time, from a cache of what was seen.

Axes beyond the decoder's: N tokens that an answer has room for.
"""

import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import NamedSharding

from jaxtune import sharding
from jaxtune.data.batches import fitting, sizes
from jaxtune.models.cache import KVCache
from jaxtune.models.layout import Layout, arrange
from jaxtune.models.paligemma import Model

EVERY = 8  # tokens between two looks at whether an answer is finished
LONGEST = 2**20  # tokens of a prompt or an answer; sizes above are not told apart


@struct.dataclass
class Sampling:
    """How a token is chosen; what is None is not done, and all of it None takes the likeliest.

    Numbers are arrays, so that only doing something else, not otherwise, compiles anew.
    """

    temperature: Any = None  # above 0
    top_k: Any = None  # the so many likeliest
    top_p: Any = None  # the likeliest that together have this chance
    min_p: Any = None  # those with this share of the likeliest one's chance
    repetition: Any = None  # a penalty of tokens that the prompt or the answer has

    @classmethod
    def of(cls, **given: float | None) -> "Sampling":
        """Checked numbers; a temperature of 0 is the likeliest token."""
        limits = {
            "temperature": (0, np.inf),
            "top_k": (1, np.inf),
            "top_p": (0, 1),
            "min_p": (0, 1),
            "repetition": (0, np.inf),
        }
        for name, value in given.items():
            low, high = limits[name]
            if value is not None and not (low <= value <= high and value == value):
                raise ValueError(f"{name} {value!r}: expected a number from {low} to {high}")
        if not given.get("temperature"):
            unread = [name for name in ("top_k", "top_p", "min_p") if given.get(name) is not None]
            if unread:
                raise ValueError(f"{', '.join(unread)} without a temperature: nothing is sampled")
            given["temperature"] = None
        return cls(**{name: None if v is None else np.float32(v) for name, v in given.items()})


@struct.dataclass
class DecodeState:
    """Answers under way, a row each."""

    cache: KVCache  # of all tokens but the last
    tokens: jax.Array  # int32[B, N], -1 where there is none
    chances: jax.Array  # float32[B, N], log-probabilities that the model gave the tokens
    count: jax.Array  # int32[], how many there are in each row, also in those that have ended
    most: jax.Array  # int32[B], how many there may be
    length: jax.Array  # int32[B], of prompts
    ended: jax.Array  # bool[B]
    stops: jax.Array  # int32[n]
    sampling: Sampling
    seen: jax.Array | None  # bool[B, V], where repetition is penalised
    keys: jax.Array  # [B], what chance is drawn from


@dataclass(frozen=True)
class Request:
    """A prompt, its pictures, and which of several answers to it is wanted."""

    tokens: tuple[int, ...]
    images: Any = None  # float32[I, S, S, 3], where the model sees pictures
    pictured: int = 0  # tokens that the pictures take
    sample: int = 0


@dataclass(frozen=True)
class Completion:
    """What a prompt was answered with."""

    tokens: list[int]  # the stop among them, if there was one
    chances: list[float]  # log-probability of each
    ended: bool  # by a stop, not for want of room


def generate(
    model: Model,
    variables: Mapping,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int = 32,
    **options: Any,
) -> list[list[int]]:
    """The tokens that follow each prompt, up to and with a stop; by default the likeliest.

    `options` are those of `answers`.
    """
    found = completions(model, variables, prompts, max_new_tokens, **options)
    return [answer.tokens for answer in found]


def completions(
    model: Model,
    variables: Mapping,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int = 32,
    *,
    images: Sequence[Any] | None = None,
    stops: Sequence[int] | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition: float | None = None,
    samples: int = 1,
    seed: int = 0,
    batch: int = 8,
    finished: Callable[[list[int]], bool] | None = None,
) -> list[Completion]:
    """An answer to each prompt, or `samples` of each in a row.

    `images` are the pictures of each prompt, [S, S, 3] or several of these, from -1 to 1; their
    tokens are put before a prompt that has none.
    `stops` are the tokens that end an answer, by default those that the checkpoint names; every
    few tokens, `finished` may say of an answer so far that it is, too. What is sampled depends on
    the seed and the prompt, not on the prompts beside it.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens {max_new_tokens}: expected 1 or more")
    asks = questions(model, prompts, images, max_new_tokens)
    sampling = Sampling.of(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition=repetition
    )
    stops = stops_of(model) if stops is None else tuple(stops)
    asked = [replace(ask, sample=number) for ask in asks for number in range(samples)]
    how = DecodeSettings(tuple(stops), sampling, seed, finished)
    found: dict[int, Completion] = {}
    for chosen in alike([len(ask.tokens) for ask in asked], batch):
        rows, room = [asked[i] for i in chosen], [max_new_tokens] * len(chosen)
        found |= zip(chosen, _answered(model, variables, rows, room, how), strict=True)
    return [found[i] for i in range(len(asked))]


def stream(
    model: Model,
    variables: Mapping,
    prompt: Sequence[int],
    max_new_tokens: int,
    *,
    images: Any = None,
    stops: Sequence[int],
    sampling: Sampling,
    seed: int = 0,
) -> Iterator[int]:
    """The tokens of one answer as they come."""
    given = None if images is None else [images]
    (ask,) = questions(model, [prompt], given, max_new_tokens)
    how, room = DecodeSettings(tuple(stops), sampling, seed), max_new_tokens
    while room:
        most = before_switch(model, ask.tokens, room)
        under_way = begin(model, variables, [ask], [most], how)
        for count in range(1, most + 1):
            under_way = proceed(model, variables, under_way, count)
            token = int(under_way.tokens[0, count - 1])
            yield token
            if token in stops:
                return
            ask, room = replace(ask, tokens=(*ask.tokens, token)), room - 1


def next_tokens(
    model: Model,
    variables: Mapping,
    prompts: Sequence[Sequence[int]],
    count: int = 10,
    *,
    images: Sequence[Any] | None = None,
    batch: int = 8,
) -> list[list[tuple[int, float]]]:
    """The likeliest next tokens of each prompt with their probabilities; nothing is decoded."""
    asks = questions(model, prompts, images, 0)
    found = {}
    for chosen in alike([len(ask.tokens) for ask in asks], batch):
        rows = padded(variables, [asks[i] for i in chosen])
        chances, tokens = map(np.asarray, _likeliest(model, count, variables, rows))
        for row, i in enumerate(chosen):
            found[i] = list(zip(tokens[row].tolist(), chances[row].tolist(), strict=True))
    return [found[i] for i in range(len(prompts))]


def questions(
    model: Model,
    prompts: Sequence[Sequence[int]],
    images: Sequence[Any] | None,  # those of each prompt
    new: int,
) -> list[Request]:
    """Prompts with their pictures; refuse those that no answer of so many tokens can follow."""
    if images is not None and len(images) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts have {len(images)} sets of images")
    asks = [
        _ask(model, number, tuple(prompt), None if images is None else images[number])
        for number, prompt in enumerate(prompts)
    ]
    _check(model, [ask.tokens for ask in asks], new)
    return asks


def _ask(model: Model, number: int, tokens: tuple[int, ...], images: Any) -> Request:
    """A prompt with its pictures, and as many tokens as these take."""
    wants = model.pictures
    if wants is None:
        if images is not None:
            raise ValueError("images were given to a model that reads text alone")
        return Request(tokens)
    side = wants.side
    stacked = np.zeros((0, side, side, 3), np.float32) if images is None else np.float32(images)
    if stacked.shape[-3:] != (side, side, 3) or stacked.ndim not in (3, 4):
        raise ValueError(
            f"the images of prompt {number} have the shape {stacked.shape}; [{side}, {side}, 3], or"
            " several of these, was expected"
        )
    stacked = stacked.reshape(-1, side, side, 3)
    there, due = tokens.count(wants.token), len(stacked) * wants.tokens
    if due and not there:
        return Request((wants.token,) * due + tokens, stacked, due)
    if there != due:
        raise ValueError(
            f"prompt {number} has {there:,} picture tokens ({wants.token}) for {len(stacked)} "
            f"pictures of {wants.tokens:,} each"
        )
    return Request(tokens, stacked, due)


def _check(model: Model, prompts: Sequence[Sequence[int]], new: int) -> None:
    """Refuse prompts that are empty, too long or not of this vocabulary."""
    vocabulary, context = model.config.vocabulary, model.config.context
    beside = {model.pictures.token} if model.pictures else set()
    for number, prompt in enumerate(prompts):
        if set(prompt) <= beside:
            raise ValueError(f"prompt {number} is empty: a model needs a token to go on from")
        if len(prompt) + new > context:
            raise ValueError(
                f"prompt {number} has {len(prompt):,} tokens, which with {new:,} new ones is more "
                f"than the model's context of {context:,}: shorten it, or ask for fewer"
            )
        if not all(0 <= token < vocabulary or token in beside for token in prompt):
            raise ValueError(
                f"prompt {number} has a token outside the vocabulary of {vocabulary:,}: it was "
                "made with another model's tokenizer"
            )


def stops_of(model: Model) -> tuple[int, ...]:
    """The tokens that end a text, as the checkpoint's own files say."""
    for name in ("generation_config.json", "config.json"):
        file = Path(model.origin) / name
        found = json.loads(file.read_text()).get("eos_token_id") if file.is_file() else None
        if found is not None:
            return tuple(found) if isinstance(found, list) else (found,)
    return ()


@struct.dataclass
class PaddedPrompts:
    """Prompts filled up to one length, and a batch of them to one of few sizes."""

    tokens: jax.Array  # int32[B, T]
    length: jax.Array  # int32[B]
    images: jax.Array | None  # float32[B, I, S, S, 3]; None where no prompt has any


@dataclass(frozen=True)
class DecodeSettings:
    """What all answers of a call have in common."""

    stops: tuple[int, ...]
    sampling: Sampling
    seed: int = 0
    finished: Callable[[list[int]], bool] | None = None


def begin(
    model: Model,
    variables: Mapping,
    asked: Sequence[Request],
    most: Sequence[int],  # tokens of each answer
    how: DecodeSettings,
) -> DecodeState:
    """Answers of one token each."""
    prompts = padded(variables, asked)
    numbers = [(zlib.crc32(np.int32(ask.tokens).tobytes()), ask.sample) for ask in asked]
    idle = prompts.tokens.shape[0] - len(asked)  # rows that fill the batch up
    return _begun(
        model,
        fitting(max(most), sizes(LONGEST, 16)),
        variables,
        prompts,
        np.int32([*most, *[0] * idle]),
        np.int32(sorted(how.stops)),
        how.sampling,
        _keys(how.seed, np.uint32(numbers + [(0, 0)] * idle)),
    )


def proceed(
    model: Model, variables: Mapping, under_way: DecodeState, until: int | None = None
) -> DecodeState:
    """Answers gone on with till all have ended, or have so many tokens."""
    return _proceeded(model, variables, under_way, np.int32(until or LONGEST))


def collected(under_way: DecodeState, rows: int) -> list[Completion]:
    """Answers as lists, each up to where it ended."""
    tokens, chances = np.asarray(under_way.tokens), np.asarray(under_way.chances)
    stops = set(np.asarray(under_way.stops).tolist())
    found = []
    for row in range(rows):
        length = int((tokens[row] >= 0).sum())
        answer, its = tokens[row, :length].tolist(), chances[row, :length].tolist()
        found.append(Completion(answer, its, ended=bool(answer) and answer[-1] in stops))
    return found


def alike(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Rows of about one length together."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    yield from (order[start : start + size] for start in range(0, len(order), size))


def _answered(
    model: Model,
    variables: Mapping,
    asked: Sequence[Request],
    room: Sequence[int],
    how: DecodeSettings,
) -> list[Completion]:
    """A batch of answers; those whose angles change on the way are gone on with anew from there."""
    most = [before_switch(model, a.tokens, room) for a, room in zip(asked, room, strict=True)]
    under_way = begin(model, variables, asked, most, how)
    found = _finished(model, variables, under_way, len(asked), how)
    cut = [i for i in range(len(asked)) if most[i] < room[i] and not found[i].ended]
    if not cut:
        return found
    longer = [replace(asked[i], tokens=(*asked[i].tokens, *found[i].tokens)) for i in cut]
    rest = _answered(model, variables, longer, [room[i] - most[i] for i in cut], how)
    for i, more in zip(cut, rest, strict=True):
        tokens, chances = found[i].tokens + more.tokens, found[i].chances + more.chances
        found[i] = Completion(tokens, chances, more.ended)
    return found


def _finished(
    model: Model, variables: Mapping, under_way: DecodeState, rows: int, how: DecodeSettings
) -> list[Completion]:
    """Answers till all have ended, by themselves or by what is said of them now and then."""
    if how.finished is None:
        return collected(proceed(model, variables, under_way), rows)
    while True:
        under_way = proceed(model, variables, under_way, int(under_way.count) + EVERY)
        found = collected(under_way, rows)
        over = [how.finished(answer.tokens) for answer in found]
        over += [True] * (under_way.ended.shape[0] - rows)
        under_way = under_way.replace(ended=under_way.ended | np.array(over))
        if under_way.ended.all():
            told = zip(found, over, strict=False)
            return [replace(answer, ended=answer.ended or ended) for answer, ended in told]


def before_switch(model: Model, prompt: Sequence[int], room: int) -> int:
    """The tokens that can follow a prompt before the angles of all tokens change."""
    switch = model.config.switch
    return room if switch is None or len(prompt) > switch else min(room, switch + 1 - len(prompt))


def filtered(
    logits: jax.Array,  # float32[B, V]
    sampling: Sampling,
    seen: jax.Array | None,  # bool[B, V]
) -> jax.Array:  # float32[B, V]
    """Logits of the distribution that is sampled from: penalised, scaled, cut off."""
    if sampling.repetition is not None:
        less = jnp.where(logits > 0, logits / sampling.repetition, logits * sampling.repetition)
        logits = jnp.where(seen, less, logits)
    if sampling.temperature is None:
        return logits
    logits = logits / sampling.temperature
    if sampling.top_k is not None or sampling.top_p is not None:
        logits = jnp.where(logits >= _lowest(logits, sampling), logits, -jnp.inf)
    if sampling.min_p is not None:
        least = logits.max(-1, keepdims=True) + jnp.log(sampling.min_p)
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    return logits


def _lowest(logits: jax.Array, sampling: Sampling) -> jax.Array:  # float32[B, 1]
    """The lowest logit that top-k, and top-p of what that leaves, keep."""
    falling = jnp.sort(logits, axis=-1, descending=True)
    if sampling.top_k is not None:
        places = jnp.arange(logits.shape[-1])
        falling = jnp.where(places < sampling.top_k, falling, -jnp.inf)
    kept = jnp.isfinite(falling)
    if sampling.top_p is not None:
        chances = jax.nn.softmax(falling, axis=-1)
        # A token is kept if those above it have less than top_p; so the first one always is.
        above = jnp.cumsum(chances, axis=-1) - chances
        kept &= (above < sampling.top_p) | (jnp.arange(logits.shape[-1]) == 0)
    return jnp.min(jnp.where(kept, falling, jnp.inf), axis=-1, keepdims=True)


def padded(variables: Mapping, asked: Sequence[Request]) -> PaddedPrompts:
    """Prompts filled up to one of few shapes, on the devices of the weights."""
    count = 1 << (len(asked) - 1).bit_length()
    fixed = min(ask.pictured for ask in asked)
    width = fitting(max(len(ask.tokens) for ask in asked), sizes(LONGEST, fixed=fixed))
    tokens, length = np.zeros((count, width), np.int32), np.ones(count, np.int32)
    for row, ask in enumerate(asked):
        tokens[row, : len(ask.tokens)], length[row] = ask.tokens, len(ask.tokens)
    prompts = PaddedPrompts(tokens, length, _side_by_side([ask.images for ask in asked], count))
    where = jax.tree.leaves(variables["params"])[0].sharding
    if not isinstance(where, NamedSharding):
        return jax.tree.map(jnp.asarray, prompts)
    spec = sharding.fitted(sharding.ROWS, (count,), where.mesh)
    return jax.device_put(prompts, NamedSharding(where.mesh, spec))


def _side_by_side(images: Sequence[Any], count: int) -> np.ndarray | None:
    """Rows of pictures, filled up with dark ones to rows of one length."""
    most = max(0 if each is None else len(each) for each in images)
    if not most:
        return None
    shape = next(each.shape[1:] for each in images if each is not None)
    found = np.zeros((count, 1 << (most - 1).bit_length(), *shape), np.float32)
    for row, each in enumerate(images):
        if each is not None:
            found[row, : len(each)] = each
    return found


@jax.jit
def _keys(seed: jax.Array, numbers: jax.Array) -> jax.Array:  # uint32[B, 2] -> keys[B]
    def one(pair):
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), pair[0]), pair[1])

    return jax.vmap(one)(numbers)


@partial(jax.jit, static_argnums=(0, 1))
def _begun(
    model: Model,
    room: int,
    variables: Mapping,
    prompts: PaddedPrompts,
    most: jax.Array,  # int32[B]
    stops: jax.Array,  # int32[n]
    sampling: Sampling,
    keys: jax.Array,  # [B]
) -> DecodeState:
    rows, width = prompts.tokens.shape
    cache = KVCache.empty(model.config, rows, width + room, model.dtype)
    logits, cache = prefill(model, variables, prompts, cache)
    seen = None
    if sampling.repetition is not None:
        inside = jnp.arange(width) < prompts.length[:, None]
        within = jnp.where(inside, prompts.tokens, logits.shape[-1])
        seen = jnp.zeros(logits.shape, jnp.bool_)
        seen = seen.at[jnp.arange(rows)[:, None], within].set(True, mode="drop")
    start = DecodeState(
        cache=cache,
        tokens=jnp.full((rows, room), -1, jnp.int32),
        chances=jnp.zeros((rows, room), jnp.float32),
        count=jnp.zeros((), jnp.int32),
        most=most,
        length=prompts.length,
        ended=most < 1,
        stops=stops,
        sampling=sampling,
        seen=seen,
        keys=keys,
    )
    return _chosen(start, logits)


def prefill(
    model: Model, variables: Mapping, prompts: PaddedPrompts, cache: KVCache
) -> tuple[jax.Array, KVCache]:  # float32[B, V]
    """The logits after each prompt."""
    shape = prompts.tokens.shape
    valid = jnp.arange(shape[1]) < prompts.length[:, None]
    # Beside pictures, the tokens of a prompt see each other, as in training.
    causal = jnp.zeros(shape, jnp.bool_) if model.pictures else None
    layout = arrange(shape, valid=valid, causal=causal)
    seen = (prompts.tokens,) if prompts.images is None else (prompts.tokens, prompts.images)
    x = model.apply(variables, *seen, method="embed")
    hidden, cache = model.apply(variables, x, layout, cache, method="prefill")
    last = jnp.take_along_axis(hidden, prompts.length[:, None, None] - 1, axis=1)[:, 0]
    return model.apply(variables, last, method="logits"), cache


@partial(jax.jit, static_argnums=(0, 1))
def _likeliest(
    model: Model, count: int, variables: Mapping, prompts: PaddedPrompts
) -> tuple[jax.Array, jax.Array]:  # float32[B, count], int32[B, count]
    cache = KVCache.empty(model.config, *prompts.tokens.shape, model.dtype)
    logits, _ = prefill(model, variables, prompts, cache)
    return jax.lax.top_k(jax.nn.softmax(logits, axis=-1), count)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _proceeded(
    model: Model, variables: Mapping, under_way: DecodeState, until: jax.Array
) -> DecodeState:
    def unfinished(state: DecodeState) -> jax.Array:
        return (state.count < until) & ~state.ended.all()

    def step(state: DecodeState) -> DecodeState:
        last = jax.lax.dynamic_index_in_dim(state.tokens, state.count - 1, 1, keepdims=False)
        place = state.length + state.count - 1
        logits, cache = extended(model, variables, state.cache, last, place)
        return _chosen(state.replace(cache=cache), logits)

    return jax.lax.while_loop(unfinished, step, under_way)


def extended(
    model: Model,
    variables: Mapping,
    cache: KVCache,  # of B rows
    last: jax.Array,  # int32[B], tokens that it is yet to be told of
    place: jax.Array,  # int32[B], where they stand in their rows
) -> tuple[jax.Array, KVCache]:  # float32[B, V]
    """The logits after one token more in each row; below 0 is none, and its row says nothing."""
    position = place[:, None]
    order = jnp.broadcast_to(cache.slot, position.shape)  # after all that went before
    layout = Layout(position, jnp.zeros_like(position), order, whole=False, counted=False)
    x = model.apply(variables, jnp.maximum(last, 0)[:, None], method="embed")
    hidden, cache = model.apply(variables, x, layout, cache, method="extend")
    return model.apply(variables, hidden[:, 0], method="logits"), cache


def _chosen(state: DecodeState, logits: jax.Array) -> DecodeState:
    """With one token more in each answer that has not ended; -1 in those that have."""
    allowed = filtered(logits, state.sampling, state.seen)
    token = jnp.argmax(allowed, axis=-1).astype(jnp.int32)
    if state.sampling.temperature is not None:
        keys = jax.vmap(jax.random.fold_in, (0, None))(state.keys, state.count)
        token = jax.vmap(jax.random.categorical)(keys, allowed).astype(jnp.int32)
    # Not by a log-softmax, which would be written out for the whole vocabulary.
    chance = jnp.take_along_axis(logits, token[:, None], axis=-1)
    chance -= jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    token = jnp.where(state.ended, -1, token)[:, None]

    def into(held, new):
        return jax.lax.dynamic_update_slice_in_dim(held, new, state.count, axis=1)

    seen = state.seen
    if seen is not None:
        rows = jnp.arange(len(token))
        past = jnp.where(token[:, 0] < 0, logits.shape[-1], token[:, 0])
        seen = seen.at[rows, past].set(True, mode="drop")
    count = state.count + 1
    return state.replace(
        tokens=into(state.tokens, token),
        chances=into(state.chances, chance),
        count=count,
        ended=state.ended | (token == state.stops).any(axis=-1) | (count >= state.most),
        seen=seen,
    )
