"""Beam search: the likeliest answers as wholes, several of them followed at a time.

Axes beyond the decoder's: K beams of a prompt, J candidates to be the next, N tokens that an answer
has room for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxtune.data.batches import fitting, sizes
from jaxtune.decoding.generate import extended, prefill, stops_of
from jaxtune.decoding.requests import (
    LONGEST,
    Completion,
    PaddedPrompts,
    alike,
    before_switch,
    make_requests,
    padded,
)
from jaxtune.models.cache import KVCache
from jaxtune.models.paligemma import Model

NONE = -1e9  # the score of what is not there, as transformers has it


@dataclass(frozen=True)
class Beam(Completion):
    """An answer that a search found the best."""

    score: float  # its log-probability over its length to the power of the penalty


@struct.dataclass
class Hypotheses:
    """Answers beside each other, those of each prompt best first."""

    tokens: jax.Array  # int32[B, K, N], -1 where there is none
    chances: jax.Array  # float32[B, K, N], log-probabilities of the tokens
    scores: jax.Array  # float32[B, K], NONE where there is no answer

    @classmethod
    def none(cls, rows: int, beams: int, room: int) -> "Hypotheses":
        """Places for so many."""
        shape = (rows, beams, room)
        scores = jnp.full(shape[:2], NONE, jnp.float32)
        return cls(jnp.full(shape, -1, jnp.int32), jnp.zeros(shape, jnp.float32), scores)

    def among(self, which: jax.Array) -> "Hypotheses":  # int32[B, J]
        """Those of these numbers."""
        rows = jnp.arange(len(which))[:, None]
        return jax.tree.map(lambda held: held[rows, which], self)

    def longer(self, token: jax.Array, chance: jax.Array, count: jax.Array) -> "Hypotheses":
        """With a token more in each, [B, K], after so many."""

        def into(held, new):
            return jax.lax.dynamic_update_slice_in_dim(held, new[..., None], count, axis=2)

        return self.replace(tokens=into(self.tokens, token), chances=into(self.chances, chance))


@struct.dataclass
class Search:
    """Searches under way, a row for each prompt."""

    cache: KVCache  # of B·K rows, of all tokens but the last
    alive: Hypotheses  # scored by their log-probabilities
    kept: Hypotheses  # those that have ended, their scores divided by their lengths
    count: jax.Array  # int32[], how many tokens there are in each that is alive
    most: jax.Array  # int32[], how many there may be
    length: jax.Array  # int32[B], of prompts
    hopeful: jax.Array  # bool[B], whether one alive may yet be better than one kept
    stops: jax.Array  # int32[n]
    penalty: jax.Array  # float32[]


def beam_search(
    model: Model,
    variables: Mapping,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int = 32,
    *,
    images: Sequence[Any] | None = None,
    beams: int = 4,
    length_penalty: float = 1.0,
    stops: Sequence[int] | None = None,
    batch: int = 8,
) -> list[Beam]:
    """The best answer found to each prompt, as transformers' beam search decides.

    A `length_penalty` above 0 favours long answers, one below 0 short ones. A search ends when no
    answer that goes on is better, over its present length, than the worst of the `beams` kept.
    """
    for name, value in dict(max_new_tokens=max_new_tokens, beams=beams, batch=batch).items():
        if value < 1:
            raise ValueError(f"{name} {value}: expected 1 or more")
    requests = make_requests(model, prompts, images, max_new_tokens)
    _check_switch(model, prompts, max_new_tokens)
    stops = np.int32(sorted(set(stops_of(model) if stops is None else stops)))
    how = (np.int32(max_new_tokens), stops, np.float32(length_penalty))
    room = fitting(max_new_tokens, sizes(LONGEST, 16))
    found: dict[int, Beam] = {}
    for chosen in alike([len(request.tokens) for request in requests], batch):
        rows = padded(variables, [requests[i] for i in chosen])
        wanted = np.arange(len(rows.length)) < len(chosen)  # the others fill the batch up
        search = _begun(model, room, beams, variables, rows, wanted, *how)
        kept = _searched(model, variables, search).kept
        found |= zip(chosen, _collected(kept, len(chosen), stops.tolist()), strict=True)
    return [found[i] for i in range(len(prompts))]


def _check_switch(model: Model, prompts: Sequence[Sequence[int]], new: int) -> None:
    """Refuse answers on whose way the angles of all tokens change: every beam would begin anew."""
    for number, prompt in enumerate(prompts):
        if before_switch(model, prompt, new) < new:
            raise ValueError(
                f"prompt {number} has {len(prompt):,} tokens and may get {new:,} more: this "
                f"model's rope changes above {model.config.switch:,}, which beam search cannot "
                "cross. Ask for fewer tokens, or decode without beams"
            )


def _collected(kept: Hypotheses, rows: int, stops: Sequence[int]) -> list[Beam]:
    """The best of each row."""
    tokens, chances, scores = (np.asarray(each[:rows, 0]) for each in jax.tree.leaves(kept))
    found = []
    for its, of_its, score in zip(tokens, chances, scores, strict=True):
        length = int((its >= 0).sum())
        ended = int(its[length - 1]) in stops
        found.append(Beam(its[:length].tolist(), of_its[:length].tolist(), ended, float(score)))
    return found


@partial(jax.jit, static_argnums=(0, 1, 2))
def _begun(
    model: Model,
    room: int,
    beams: int,
    variables: Mapping,
    prompts: PaddedPrompts,
    wanted: jax.Array,  # bool[B]
    most: jax.Array,  # int32[]
    stops: jax.Array,  # int32[n]
    penalty: jax.Array,  # float32[]
) -> Search:
    """The first token of each; a prompt is read once for all its beams."""
    rows, width = prompts.tokens.shape
    cache = KVCache.empty(model.config, rows, width + room, model.dtype)
    logits, cache = prefill(model, variables, prompts, cache)
    nothing = Hypotheses.none(rows, beams, room)
    search = Search(
        cache=_of_rows(cache, jnp.repeat(jnp.arange(rows), beams)),
        # One alone is there, or all would become the same.
        alive=nothing.replace(scores=nothing.scores.at[:, 0].set(0.0)),
        kept=nothing,
        count=jnp.zeros((), jnp.int32),
        most=most,
        length=prompts.length,
        hopeful=wanted,
        stops=stops,
        penalty=penalty,
    )
    return _grown(search, jnp.repeat(logits, beams, axis=0))


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _searched(model: Model, variables: Mapping, search: Search) -> Search:
    def unfinished(search: Search) -> jax.Array:
        return (search.count < search.most) & search.hopeful.any()

    def step(search: Search) -> Search:
        beams = search.alive.scores.shape[1]
        last = jax.lax.dynamic_index_in_dim(search.alive.tokens, search.count - 1, 2)
        place = jnp.repeat(search.length + search.count - 1, beams)
        logits, cache = extended(model, variables, search.cache, last.reshape(-1), place)
        return _grown(search.replace(cache=cache), logits)

    return jax.lax.while_loop(unfinished, step, search)


def _grown(search: Search, logits: jax.Array) -> Search:  # float32[B·K, V]
    """With a token more in those alive, and those that end with it kept if they are good enough."""
    rows, beams = search.alive.scores.shape
    beam, new = _candidates(search, logits)
    count = search.count + 1
    token = jax.lax.dynamic_index_in_dim(new.tokens, search.count, 2, keepdims=False)  # [B, J]
    over = (token[..., None] == search.stops).any(axis=-1) | (count >= search.most)
    scores, going = jax.lax.top_k(jnp.where(over, new.scores + NONE, new.scores), beams)
    # Candidates after the first K are there to go on with; they end in vain.
    ending = over & (jnp.arange(over.shape[1]) < beams) & search.hopeful[:, None]
    scale = count.astype(jnp.float32) ** search.penalty
    ended = new.replace(scores=jnp.where(ending, new.scores / scale, NONE))
    kept = jax.tree.map(lambda *both: jnp.concatenate(both, axis=1), search.kept, ended)
    kept = kept.among(jax.lax.top_k(kept.scores, beams)[1])
    come_from = jnp.take_along_axis(beam, going, axis=1) + beams * jnp.arange(rows)[:, None]
    return search.replace(
        cache=_of_rows(search.cache, come_from.reshape(-1)),
        alive=new.among(going).replace(scores=scores),
        kept=kept,
        count=count,
        hopeful=search.hopeful & (scores[:, 0] / scale > kept.scores[:, -1]),
    )


def _candidates(search: Search, logits: jax.Array) -> tuple[jax.Array, Hypotheses]:
    """The likeliest answers of a token more, and the beams, int32[B, J], that they come from.

    There are so many that K go on even if every beam's likeliest tokens are all the stops.
    """
    rows, beams = search.alive.scores.shape
    vocabulary = logits.shape[-1]
    chances = jax.nn.log_softmax(logits).reshape(rows, beams, vocabulary)
    totals = (chances + search.alive.scores[..., None]).reshape(rows, -1)
    count = min(max(2, 1 + len(search.stops)), vocabulary) * beams
    scores, place = jax.lax.top_k(totals, count)
    beam, token = place // vocabulary, (place % vocabulary).astype(jnp.int32)
    chance = jnp.take_along_axis(chances.reshape(rows, -1), place, axis=1)
    new = search.alive.among(beam).longer(token, chance, search.count)
    return beam, new.replace(scores=scores)


def _of_rows(cache: KVCache, rows: jax.Array) -> KVCache:  # int32[n]
    """The cache of other rows, each of which goes on from one of these."""
    stored = jax.tree.map(lambda held: held[:, rows], cache.stored)
    layout = jax.tree.map(lambda held: held[rows], cache.layout)
    return cache.replace(stored=stored, layout=layout)
