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
from jaxtune.models.decoder import Decoder
from jaxtune.models.layout import Layout, arrange

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
class Answering:
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
class Answer:
    """What a prompt was answered with."""

    tokens: list[int]  # the stop among them, if there was one
    chances: list[float]  # log-probability of each
    ended: bool  # by a stop, not for want of room


def generate(
    model: Decoder,
    variables: Mapping,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int = 32,
    **options: Any,
) -> list[list[int]]:
    """The tokens that follow each prompt, up to and with a stop; by default the likeliest.

    `options` are those of `answers`.
    """
    found = answers(model, variables, prompts, max_new_tokens, **options)
    return [answer.tokens for answer in found]


def answers(
    model: Decoder,
    variables: Mapping,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int = 32,
    *,
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
) -> list[Answer]:
    """An answer to each prompt, or `samples` of each in a row.

    `stops` are the tokens that end an answer, by default those that the checkpoint names; every
    few tokens, `finished` may say of an answer so far that it is, too. What is sampled depends on
    the seed and the prompt, not on the prompts beside it.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens {max_new_tokens}: expected 1 or more")
    check(model, prompts, max_new_tokens)
    sampling = Sampling.of(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition=repetition
    )
    stops = stops_of(model) if stops is None else tuple(stops)
    asked = [(tuple(prompt), number) for prompt in prompts for number in range(samples)]
    how = _How(tuple(stops), sampling, seed, finished)
    found: dict[int, Answer] = {}
    for chosen in alike([len(prompt) for prompt, _ in asked], batch):
        rows, room = [asked[i] for i in chosen], [max_new_tokens] * len(chosen)
        found |= zip(chosen, _answered(model, variables, rows, room, how), strict=True)
    return [found[i] for i in range(len(asked))]


def stream(
    model: Decoder,
    variables: Mapping,
    prompt: Sequence[int],
    max_new_tokens: int,
    *,
    stops: Sequence[int],
    sampling: Sampling,
    seed: int = 0,
) -> Iterator[int]:
    """The tokens of one answer as they come."""
    check(model, [prompt], max_new_tokens)
    how = _How(tuple(stops), sampling, seed)
    prompt, room = tuple(prompt), max_new_tokens
    while room:
        most = before_switch(model, prompt, room)
        under_way = begin(model, variables, [(prompt, 0)], [most], how)
        for count in range(1, most + 1):
            under_way = proceed(model, variables, under_way, count)
            token = int(under_way.tokens[0, count - 1])
            yield token
            if token in stops:
                return
            prompt, room = (*prompt, token), room - 1


def next_tokens(
    model: Decoder,
    variables: Mapping,
    prompts: Sequence[Sequence[int]],
    count: int = 10,
    *,
    batch: int = 8,
) -> list[list[tuple[int, float]]]:
    """The likeliest next tokens of each prompt with their probabilities; nothing is decoded."""
    check(model, prompts, 0)
    found = {}
    for chosen in alike(list(map(len, prompts)), batch):
        rows = padded(variables, [prompts[i] for i in chosen])
        chances, tokens = map(np.asarray, _likeliest(model, count, variables, *rows))
        for row, i in enumerate(chosen):
            found[i] = list(zip(tokens[row].tolist(), chances[row].tolist(), strict=True))
    return [found[i] for i in range(len(prompts))]


def check(model: Decoder, prompts: Sequence[Sequence[int]], new: int) -> None:
    """Refuse prompts that are empty, too long or not of this vocabulary."""
    vocabulary, context = model.config.vocabulary, model.config.context
    for number, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"prompt {number} is empty: a model needs a token to go on from")
        if len(prompt) + new > context:
            raise ValueError(
                f"prompt {number} has {len(prompt):,} tokens, which with {new:,} new ones is more "
                f"than the model's context of {context:,}: shorten it, or ask for fewer"
            )
        if not all(0 <= token < vocabulary for token in prompt):
            raise ValueError(
                f"prompt {number} has a token outside the vocabulary of {vocabulary:,}: it was "
                "made with another model's tokenizer"
            )


def stops_of(model: Decoder) -> tuple[int, ...]:
    """The tokens that end a text, as the checkpoint's own files say."""
    for name in ("generation_config.json", "config.json"):
        file = Path(model.origin) / name
        found = json.loads(file.read_text()).get("eos_token_id") if file.is_file() else None
        if found is not None:
            return tuple(found) if isinstance(found, list) else (found,)
    return ()


@dataclass(frozen=True)
class _How:
    """What all answers of a call have in common."""

    stops: tuple[int, ...]
    sampling: Sampling
    seed: int = 0
    finished: Callable[[list[int]], bool] | None = None


def begin(
    model: Decoder,
    variables: Mapping,
    asked: Sequence[tuple[Sequence[int], int]],  # prompts, and the number of a sample of each
    most: Sequence[int],  # tokens of each answer
    how: _How,
) -> Answering:
    """Answers of one token each."""
    tokens, length = padded(variables, [prompt for prompt, _ in asked])
    numbers = [(zlib.crc32(np.int32(prompt).tobytes()), sample) for prompt, sample in asked]
    idle = tokens.shape[0] - len(asked)  # rows that fill the batch up
    return _begun(
        model,
        fitting(max(most), sizes(LONGEST, 16)),
        variables,
        tokens,
        length,
        np.int32([*most, *[0] * idle]),
        np.int32(sorted(how.stops)),
        how.sampling,
        _keys(how.seed, np.uint32(numbers + [(0, 0)] * idle)),
    )


def proceed(
    model: Decoder, variables: Mapping, under_way: Answering, until: int | None = None
) -> Answering:
    """Answers gone on with till all have ended, or have so many tokens."""
    return _proceeded(model, variables, under_way, np.int32(until or LONGEST))


def collected(under_way: Answering, rows: int) -> list[Answer]:
    """Answers as lists, each up to where it ended."""
    tokens, chances = np.asarray(under_way.tokens), np.asarray(under_way.chances)
    stops = set(np.asarray(under_way.stops).tolist())
    found = []
    for row in range(rows):
        length = int((tokens[row] >= 0).sum())
        answer, its = tokens[row, :length].tolist(), chances[row, :length].tolist()
        found.append(Answer(answer, its, ended=bool(answer) and answer[-1] in stops))
    return found


def alike(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Rows of about one length together."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    yield from (order[start : start + size] for start in range(0, len(order), size))


def _answered(
    model: Decoder,
    variables: Mapping,
    asked: Sequence[tuple[tuple[int, ...], int]],
    room: Sequence[int],
    how: _How,
) -> list[Answer]:
    """A batch of answers; those whose angles change on the way are gone on with anew from there."""
    most = [before_switch(model, *each) for each in zip([p for p, _ in asked], room, strict=True)]
    under_way = begin(model, variables, asked, most, how)
    found = _finished(model, variables, under_way, len(asked), how)
    cut = [i for i in range(len(asked)) if most[i] < room[i] and not found[i].ended]
    if not cut:
        return found
    longer = [((*asked[i][0], *found[i].tokens), asked[i][1]) for i in cut]
    rest = _answered(model, variables, longer, [room[i] - most[i] for i in cut], how)
    for i, more in zip(cut, rest, strict=True):
        tokens, chances = found[i].tokens + more.tokens, found[i].chances + more.chances
        found[i] = Answer(tokens, chances, more.ended)
    return found


def _finished(
    model: Decoder, variables: Mapping, under_way: Answering, rows: int, how: _How
) -> list[Answer]:
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


def before_switch(model: Decoder, prompt: Sequence[int], room: int) -> int:
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


def padded(
    variables: Mapping, prompts: Sequence[Sequence[int]]
) -> tuple[jax.Array, jax.Array]:  # int32[B, T], int32[B]
    """Prompts filled up to one of few shapes, and their lengths, on the devices of the weights."""
    count = 1 << (len(prompts) - 1).bit_length()
    width = fitting(max(map(len, prompts)), sizes(LONGEST))
    tokens, length = np.zeros((count, width), np.int32), np.ones(count, np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)], length[row] = prompt, len(prompt)
    where = variables["params"]["embed"]["w"].sharding
    if not isinstance(where, NamedSharding):
        return jnp.asarray(tokens), jnp.asarray(length)
    spec = sharding.fitted(sharding.ROWS, (count,), where.mesh)
    return jax.device_put((tokens, length), NamedSharding(where.mesh, spec))


@jax.jit
def _keys(seed: jax.Array, numbers: jax.Array) -> jax.Array:  # uint32[B, 2] -> keys[B]
    def one(pair):
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), pair[0]), pair[1])

    return jax.vmap(one)(numbers)


@partial(jax.jit, static_argnums=(0, 1))
def _begun(
    model: Decoder,
    room: int,
    variables: Mapping,
    tokens: jax.Array,  # int32[B, T]
    length: jax.Array,  # int32[B]
    most: jax.Array,  # int32[B]
    stops: jax.Array,  # int32[n]
    sampling: Sampling,
    keys: jax.Array,  # [B]
) -> Answering:
    rows, width = tokens.shape
    cache = KVCache.empty(model.config, rows, width + room, model.dtype)
    logits, cache = prefill(model, variables, tokens, length, cache)
    seen = None
    if sampling.repetition is not None:
        within = jnp.where(jnp.arange(width) < length[:, None], tokens, logits.shape[-1])
        seen = jnp.zeros(logits.shape, jnp.bool_)
        seen = seen.at[jnp.arange(rows)[:, None], within].set(True, mode="drop")
    start = Answering(
        cache=cache,
        tokens=jnp.full((rows, room), -1, jnp.int32),
        chances=jnp.zeros((rows, room), jnp.float32),
        count=jnp.zeros((), jnp.int32),
        most=most,
        length=length,
        ended=most < 1,
        stops=stops,
        sampling=sampling,
        seen=seen,
        keys=keys,
    )
    return _chosen(start, logits)


def prefill(
    model: Decoder, variables: Mapping, tokens: jax.Array, length: jax.Array, cache: KVCache
) -> tuple[jax.Array, KVCache]:  # float32[B, V]
    """The logits after each prompt."""
    valid = jnp.arange(tokens.shape[1]) < length[:, None]
    layout = arrange(tokens.shape, valid=valid)
    x = model.apply(variables, tokens, method="embed")
    hidden, cache = model.apply(variables, x, layout, cache, method="prefill")
    last = jnp.take_along_axis(hidden, length[:, None, None] - 1, axis=1)[:, 0]
    return model.apply(variables, last, method="logits"), cache


@partial(jax.jit, static_argnums=(0, 1))
def _likeliest(
    model: Decoder, count: int, variables: Mapping, tokens: jax.Array, length: jax.Array
) -> tuple[jax.Array, jax.Array]:  # float32[B, count], int32[B, count]
    cache = KVCache.empty(model.config, *tokens.shape, model.dtype)
    logits, _ = prefill(model, variables, tokens, length, cache)
    return jax.lax.top_k(jax.nn.softmax(logits, axis=-1), count)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _proceeded(
    model: Decoder, variables: Mapping, under_way: Answering, until: jax.Array
) -> Answering:
    def unfinished(state: Answering) -> jax.Array:
        return (state.count < until) & ~state.ended.all()

    def step(state: Answering) -> Answering:
        last = jax.lax.dynamic_index_in_dim(state.tokens, state.count - 1, 1, keepdims=False)
        place = state.length + state.count - 1
        logits, cache = extended(model, variables, state.cache, last, place)
        return _chosen(state.replace(cache=cache), logits)

    return jax.lax.while_loop(unfinished, step, under_way)


def extended(
    model: Decoder,
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


def _chosen(state: Answering, logits: jax.Array) -> Answering:
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
