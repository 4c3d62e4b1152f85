"""Autoregressive decoding with a KV cache: greedy or sampled, in batches or as a stream.

Axes beyond the decoder's: N the most tokens an answer has room for.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune.adapters.lora import with_norms
from jaxtune.data.batches import fitting, sizes
from jaxtune.decoding.requests import (
    LONGEST,
    Completion,
    PaddedPrompts,
    Request,
    alike,
    before_switch,
    make_requests,
    padded,
)
from jaxtune.decoding.sampling import Sampling, filtered
from jaxtune.decoding.state import DecodeState, NotFiniteError, collected
from jaxtune.display.errors import UserError
from jaxtune.models import forward
from jaxtune.models.cache import KVCache
from jaxtune.models.layout import Layout, arrange
from jaxtune.models.paligemma import Model
from jaxtune.models.programs import program
from jaxtune.sharding import to_host

SEEDS = 2**32  # JAX takes the lower 32 bits of a seed
MOST_ROWS = 65_536  # answers to a prompt, and answers decoded at a time
LARGEST_TOKEN = 2**31  # ids are int32
EVERY = 8  # tokens between two calls of `finished`
FEW = 4  # tokens of a stream that the host asks the device for at a time


def generate(
    model: Model,
    variables: Mapping,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int = 32,
    **options: Any,
) -> list[list[int]]:
    """Returns the tokens that follow each prompt, up to and including a stop token.

    The arguments and options are those of `completions`; by default decoding is greedy.
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
    """Decodes one answer, or `samples` answers, to each prompt.

    Args:
      model: The model.
      variables: Its variables.
      prompts: Tokens of each prompt.
      max_new_tokens: Limit on the tokens of an answer, a stop token included.
      images: Pictures of each prompt, [S, S, 3] or [I, S, S, 3], with values from -1 to 1. A prompt
        without picture tokens gets them at its start.
      stops: Tokens that end an answer; by default those that the checkpoint names.
      temperature, top_k, top_p, min_p, repetition: As in `Sampling`; greedy without a temperature.
      samples: Number of answers to each prompt.
      seed: Random seed. A sample depends on seed, prompt and index, not on the rest of its batch.
      batch: Number of answers decoded at a time.
      finished: Called every few tokens with the tokens of each answer; True ends the answer.

    Returns:
      Completions in the order of the prompts; the samples of a prompt are consecutive.
    """
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens {max_new_tokens}: expected 1 or more")
    for name, count in (("samples", samples), ("batch", batch)):
        if not 1 <= count <= MOST_ROWS:
            raise UserError(f"{name} {count}: expected a number from 1 to {MOST_ROWS:,}")
    requests = make_requests(model, prompts, images, max_new_tokens)
    sampling = Sampling.of(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition=repetition
    )
    stops = stops_of(model) if stops is None else tuple(stops)
    requests = [replace(each, sample=number) for each in requests for number in range(samples)]
    how = DecodeSettings(tuple(stops), sampling, seed, finished)
    variables = with_norms(variables)
    found: dict[int, Completion] = {}
    for chosen in alike([len(request.tokens) for request in requests], batch):
        rows, room = [requests[i] for i in chosen], [max_new_tokens] * len(chosen)
        found |= zip(chosen, _answered(model, variables, rows, room, how), strict=True)
    return [found[i] for i in range(len(requests))]


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
    """Yields the tokens of one answer as they are decoded, the first alone and then a few together.

    The arguments are as in `completions`, for one prompt. A stop token is yielded, too.
    """
    given = None if images is None else [images]
    (request,) = make_requests(model, [prompt], given, max_new_tokens)
    how, room = DecodeSettings(tuple(stops), sampling, seed), max_new_tokens
    variables = with_norms(variables)
    while room:
        limit = before_switch(model, request.tokens, room)
        under_way = begin(model, variables, [request], [limit], how)
        taken = 0
        while taken < limit:
            under_way = advance(
                model, variables, under_way, min(taken + FEW, limit) if taken else 1
            )
            [answer] = collected(model, under_way, 1)
            yield from answer.tokens[taken:]
            if answer.ended:
                return
            taken = len(answer.tokens)
        request, room = replace(request, tokens=(*request.tokens, *answer.tokens)), room - taken


def next_tokens(
    model: Model,
    variables: Mapping,
    prompts: Sequence[Sequence[int]],
    count: int = 10,
    *,
    images: Sequence[Any] | None = None,
    batch: int = 8,
) -> list[list[tuple[int, float]]]:
    """Returns the `count` likeliest next tokens of each prompt with their probabilities."""
    requests = make_requests(model, prompts, images, 0)
    found = {}
    for chosen in alike([len(request.tokens) for request in requests], batch):
        rows = padded(variables, [requests[i] for i in chosen])
        log_probs, tokens = map(to_host, _likeliest(model, count, variables, rows))
        if not np.isfinite(log_probs[: len(chosen)]).all():
            raise NotFiniteError(model)
        for row, i in enumerate(chosen):
            found[i] = list(zip(tokens[row].tolist(), log_probs[row].tolist(), strict=True))
    return [found[i] for i in range(len(prompts))]


@dataclass(frozen=True)
class DecodeSettings:
    """Settings that all answers of a call share."""

    stops: tuple[int, ...]
    sampling: Sampling
    seed: int = 0
    finished: Callable[[list[int]], bool] | None = None

    def __post_init__(self):
        wrong = [stop for stop in self.stops if not 0 <= stop < LARGEST_TOKEN]
        if wrong:
            raise UserError(f"stops: {wrong[0]} is no token; expected ids of the vocabulary")
        if not 0 <= self.seed < SEEDS:
            raise UserError(f"seed {self.seed}: expected a number from 0 to {SEEDS - 1:,}")


def stops_of(model: Model) -> tuple[int, ...]:
    """Returns the stop tokens of the model's checkpoint, or () if it was not loaded from one."""
    return model.origin.stops if model.origin else ()


def begin(
    model: Model,
    variables: Mapping,
    requests: Sequence[Request],
    limit: Sequence[int],  # limit on the tokens of each answer
    how: DecodeSettings,
) -> DecodeState:
    """Prefills the cache with padded prompts and chooses the first token of each answer."""
    prompts = padded(variables, requests)
    identities = [
        (zlib.crc32(np.int32(request.tokens).tobytes()), request.sample) for request in requests
    ]
    idle = prompts.tokens.shape[0] - len(requests)  # padding rows
    return begun(
        model,
        fitting(max(limit), sizes(LONGEST, 16)),
        variables,
        prompts,
        np.int32([*limit, *[0] * idle]),
        np.int32(sorted(how.stops)),
        how.sampling,
        np.uint32(how.seed),
        np.uint32(identities + [(0, 0)] * idle),
    )


def advance(
    model: Model, variables: Mapping, under_way: DecodeState, until: int | None = None
) -> DecodeState:
    """Decodes until all answers have ended or the longest has `until` tokens; donates the state."""
    return advanced(model, variables, under_way, np.int32(until or LONGEST))


def _answered(
    model: Model,
    variables: Mapping,
    requests: Sequence[Request],
    room: Sequence[int],
    how: DecodeSettings,
) -> list[Completion]:
    """Decodes a batch; an answer that reaches the rope's switch is prefilled anew and continued."""
    limit = [before_switch(model, a.tokens, room) for a, room in zip(requests, room, strict=True)]
    under_way = begin(model, variables, requests, limit, how)
    found = _finished(model, variables, under_way, len(requests), how)
    cut = [i for i in range(len(requests)) if limit[i] < room[i] and not found[i].ended]
    if not cut:
        return found
    longer = [replace(requests[i], tokens=(*requests[i].tokens, *found[i].tokens)) for i in cut]
    rest = _answered(model, variables, longer, [room[i] - limit[i] for i in cut], how)
    for i, more in zip(cut, rest, strict=True):
        tokens, log_probs = found[i].tokens + more.tokens, found[i].log_probs + more.log_probs
        found[i] = Completion(tokens, log_probs, more.ended)
    return found


def _finished(
    model: Model, variables: Mapping, under_way: DecodeState, rows: int, how: DecodeSettings
) -> list[Completion]:
    """Decodes until each answer has ended by a stop token, its limit or `how.finished`."""
    if how.finished is None:
        return collected(model, advance(model, variables, under_way), rows)
    while True:
        under_way = advance(model, variables, under_way, int(under_way.count) + EVERY)
        found = collected(model, under_way, rows)
        over = [how.finished(answer.tokens) for answer in found]
        over += [True] * (under_way.ended.shape[0] - rows)
        under_way = under_way.replace(ended=under_way.ended | np.array(over))
        if under_way.ended.all():
            flags = zip(found, over, strict=False)
            return [replace(answer, ended=answer.ended or ended) for answer, ended in flags]


def _keys(seed: jax.Array, numbers: jax.Array) -> jax.Array:  # uint32[B, 2] -> keys[B]
    def one(pair):
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), pair[0]), pair[1])

    return jax.vmap(one)(numbers)


@program(static_argnums=(0, 1))
def begun(
    model: Model,
    room: int,
    variables: Mapping,
    prompts: PaddedPrompts,
    limit: jax.Array,  # int32[B]
    stops: jax.Array,  # int32[n]
    sampling: Sampling,
    seed: jax.Array,  # uint32[]
    identities: jax.Array,  # uint32[B, 2], of the prompt and the sample
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
        log_probs=jnp.zeros((rows, room), jnp.float32),
        count=jnp.zeros((), jnp.int32),
        limit=limit,
        length=prompts.length,
        ended=limit < 1,
        stops=stops,
        sampling=sampling,
        seen=seen,
        keys=_keys(seed, identities),
    )
    return _chosen(start, logits)


def prefill(
    model: Model, variables: Mapping, prompts: PaddedPrompts, cache: KVCache
) -> tuple[jax.Array, KVCache]:  # float32[B, V]
    """Fills an empty cache with whole prompts and returns the logits of the token after each."""
    shape = prompts.tokens.shape
    valid = jnp.arange(shape[1]) < prompts.length[:, None]
    # In models with pictures a prompt is a prefix with full attention, as in training.
    causal = jnp.zeros(shape, jnp.bool_) if model.pictures else None
    layout = arrange(shape, valid=valid, causal=causal)
    x = forward.embedded(model, variables, prompts.tokens, prompts.images)
    hidden, cache = model.apply(variables, x, layout, cache, method="prefill")
    last = forward.chosen(hidden, prompts.length[:, None] - 1)[:, 0]
    return forward.logits(model, variables, last), cache


@program(static_argnums=(0, 1))
def _likeliest(
    model: Model, count: int, variables: Mapping, prompts: PaddedPrompts
) -> tuple[jax.Array, jax.Array]:  # float32[B, count], int32[B, count]
    cache = KVCache.empty(model.config, *prompts.tokens.shape, model.dtype)
    logits, _ = prefill(model, variables, prompts, cache)
    return jax.lax.top_k(jax.nn.softmax(logits, axis=-1), count)


@program(static_argnums=0, donate_argnums=2)
def advanced(
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
    last: jax.Array,  # int32[B], tokens not in the cache yet; below 0 in rows that have ended
    place: jax.Array,  # int32[B], positions of these tokens
) -> tuple[jax.Array, KVCache]:  # float32[B, V]
    """Adds a token per row to the cache; returns the next logits, meaningless in ended rows."""
    position = place[:, None]
    order = jnp.broadcast_to(cache.slot, position.shape)  # so that it sees all earlier tokens
    layout = Layout(position, jnp.zeros_like(position), order, whole=False, counted=False)
    x = forward.embedded(model, variables, jnp.maximum(last, 0)[:, None])
    hidden, cache = model.apply(variables, x, layout, cache, method="extend")
    return forward.logits(model, variables, hidden[:, 0]), cache


def _chosen(state: DecodeState, logits: jax.Array) -> DecodeState:
    """Appends a token chosen by `logits` to each answer, or -1 to answers that have ended."""
    allowed = filtered(logits, state.sampling, state.seen)
    token = jnp.argmax(allowed, axis=-1).astype(jnp.int32)
    if state.sampling.temperature is not None:
        keys = jax.vmap(jax.random.fold_in, (0, None))(state.keys, state.count)
        token = jax.vmap(jax.random.categorical)(keys, allowed).astype(jnp.int32)
    # A log-softmax would be materialised for the whole vocabulary.
    log_prob = jnp.take_along_axis(logits, token[:, None], axis=-1)
    log_prob -= jax.nn.logsumexp(logits, axis=-1, keepdims=True)
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
        log_probs=into(state.log_probs, log_prob),
        count=count,
        ended=state.ended | (token == state.stops).any(axis=-1) | (count >= state.limit),
        seen=seen,
    )
