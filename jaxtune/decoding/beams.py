"""Beam search: extends several partial answers at a time to find the likeliest whole answer.

Axes beyond the decoder's: K beams of a prompt, J candidates for the next beams, N the most tokens
an answer has room for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxtune.adapters.lora import with_norms
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
from jaxtune.decoding.state import NotFiniteError
from jaxtune.display.errors import UserError
from jaxtune.models.cache import KVCache
from jaxtune.models.paligemma import Model
from jaxtune.models.programs import program
from jaxtune.sharding import to_host

NONE = -1e9  # score of an empty slot, as in transformers


@dataclass(frozen=True)
class Beam(Completion):
    """The best answer that a beam search found to a prompt."""

    score: float  # log-probability / length**length_penalty


@struct.dataclass
class Hypotheses:
    """K answers, complete or partial, to each of B prompts, in descending order of score."""

    tokens: jax.Array  # int32[B, K, N], -1 where an answer has no token
    log_probs: jax.Array  # float32[B, K, N], log-probabilities of the tokens
    scores: jax.Array  # float32[B, K], NONE where there is no answer

    @classmethod
    def none(cls, rows: int, beams: int, room: int) -> "Hypotheses":
        """Returns empty slots for `beams` answers of at most `room` tokens to `rows` prompts."""
        shape = (rows, beams, room)
        scores = jnp.full(shape[:2], NONE, jnp.float32)
        return cls(jnp.full(shape, -1, jnp.int32), jnp.zeros(shape, jnp.float32), scores)

    def among(self, which: jax.Array) -> "Hypotheses":  # int32[B, J]
        """Returns the answers with these indices along the beam axis."""
        rows = jnp.arange(len(which))[:, None]
        return jax.tree.map(lambda held: held[rows, which], self)

    def longer(self, token: jax.Array, log_prob: jax.Array, count: jax.Array) -> "Hypotheses":
        """Returns the answers with tokens [B, K] and their log-probabilities at index `count`."""

        def into(held, new):
            return jax.lax.dynamic_update_slice_in_dim(held, new[..., None], count, axis=2)

        return self.replace(
            tokens=into(self.tokens, token), log_probs=into(self.log_probs, log_prob)
        )


@struct.dataclass
class Search:
    """State of the search loop for a batch of prompts."""

    cache: KVCache  # of B·K rows; holds all tokens but the last
    alive: Hypotheses  # unfinished answers; the score is the log-probability
    kept: Hypotheses  # finished answers; the score is divided by length**penalty
    count: jax.Array  # int32[], tokens of each unfinished answer
    limit: jax.Array  # int32[], limit on the tokens of an answer
    length: jax.Array  # int32[B], tokens of each prompt
    hopeful: jax.Array  # bool[B], whether an unfinished answer may yet beat a kept one
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
    """Returns the best answer found to each prompt, as transformers' beam search decides.

    A search ends when no unfinished answer, scored at its present length, is better than the worst
    of the `beams` finished answers that are kept.

    Args:
      model: The model.
      variables: Its variables.
      prompts: Tokens of each prompt.
      max_new_tokens: Limit on the tokens of an answer, a stop token included.
      images: Pictures of each prompt, as in `generate.completions`.
      beams: Number of answers that are extended, and of finished answers that are kept.
      length_penalty: Exponent of the length that log-probabilities are divided by: above 0 it
        favours long answers, below 0 short ones.
      stops: Tokens that end an answer; by default those that the checkpoint names.
      batch: Number of prompts searched at a time.

    Returns:
      One `Beam` per prompt, in the order of the prompts.
    """
    for name, value in dict(max_new_tokens=max_new_tokens, beams=beams, batch=batch).items():
        if value < 1:
            raise UserError(f"{name} {value}: expected 1 or more")
    requests = make_requests(model, prompts, images, max_new_tokens)
    _check_switch(model, prompts, max_new_tokens)
    stops = np.int32(sorted(set(stops_of(model) if stops is None else stops)))
    how = (np.int32(max_new_tokens), stops, np.float32(length_penalty))
    room = fitting(max_new_tokens, sizes(LONGEST, 16))
    variables = with_norms(variables)
    found: dict[int, Beam] = {}
    for chosen in alike([len(request.tokens) for request in requests], batch):
        rows = padded(variables, [requests[i] for i in chosen])
        wanted = np.arange(len(rows.length)) < len(chosen)  # the others are padding
        search = _begun(model, room, beams, variables, rows, wanted, *how)
        kept = _searched(model, variables, search).kept
        best = _collected(kept, len(chosen), stops.tolist())
        if not all(NONE / 2 < each.score <= 0 for each in best):  # NaN or no answer at all
            raise NotFiniteError(model)
        found |= zip(chosen, best, strict=True)
    return [found[i] for i in range(len(prompts))]


def _check_switch(model: Model, prompts: Sequence[Sequence[int]], new: int) -> None:
    """Raises ValueError if an answer may reach the length at which the rope's angles change.

    The change applies to all tokens, so every beam's cache would have to be prefilled again.
    """
    for number, prompt in enumerate(prompts):
        if before_switch(model, prompt, new) < new:
            raise UserError(
                f"prompt {number} has {len(prompt):,} tokens and may get {new:,} more, but this "
                f"model's RoPE changes above {model.config.switch:,} tokens, a limit that beam "
                "search cannot cross. Request fewer tokens, or decode without beams"
            )


def _collected(kept: Hypotheses, rows: int, stops: Sequence[int]) -> list[Beam]:
    """Returns the best finished answer of each of the first `rows` rows."""
    tokens, log_probs, scores = (to_host(each)[:rows, 0] for each in jax.tree.leaves(kept))
    found = []
    for answer, parts, score in zip(tokens, log_probs, scores, strict=True):
        length = int((answer >= 0).sum())
        ended = int(answer[length - 1]) in stops
        found.append(Beam(answer[:length].tolist(), parts[:length].tolist(), ended, float(score)))
    return found


@program(static_argnums=(0, 1, 2))
def _begun(
    model: Model,
    room: int,
    beams: int,
    variables: Mapping,
    prompts: PaddedPrompts,
    wanted: jax.Array,  # bool[B]
    limit: jax.Array,  # int32[]
    stops: jax.Array,  # int32[n]
    penalty: jax.Array,  # float32[]
) -> Search:
    """Prefills each prompt once, copies its cache to all beams and chooses their first tokens."""
    rows, width = prompts.tokens.shape
    cache = KVCache.empty(model.config, rows, width + room, model.dtype)
    logits, cache = prefill(model, variables, prompts, cache)
    nothing = Hypotheses.none(rows, beams, room)
    search = Search(
        cache=_of_rows(cache, jnp.repeat(jnp.arange(rows), beams)),
        # One beam alone is live at first: equal beams would all be extended in the same way.
        alive=nothing.replace(scores=nothing.scores.at[:, 0].set(0.0)),
        kept=nothing,
        count=jnp.zeros((), jnp.int32),
        limit=limit,
        length=prompts.length,
        hopeful=wanted,
        stops=stops,
        penalty=penalty,
    )
    return _grown(search, jnp.repeat(logits, beams, axis=0))


@program(static_argnums=0, donate_argnums=2)
def _searched(model: Model, variables: Mapping, search: Search) -> Search:
    def unfinished(search: Search) -> jax.Array:
        return (search.count < search.limit) & search.hopeful.any()

    def step(search: Search) -> Search:
        beams = search.alive.scores.shape[1]
        last = jax.lax.dynamic_index_in_dim(search.alive.tokens, search.count - 1, 2)
        place = jnp.repeat(search.length + search.count - 1, beams)
        logits, cache = extended(model, variables, search.cache, last.reshape(-1), place)
        return _grown(search.replace(cache=cache), logits)

    return jax.lax.while_loop(unfinished, step, search)


def _grown(search: Search, logits: jax.Array) -> Search:  # float32[B·K, V]
    """Extends unfinished answers by a token, and keeps those that end with it if good enough."""
    rows, beams = search.alive.scores.shape
    beam, new = _candidates(search, logits)
    count = search.count + 1
    token = jax.lax.dynamic_index_in_dim(new.tokens, search.count, 2, keepdims=False)  # [B, J]
    over = (token[..., None] == search.stops).any(axis=-1) | (count >= search.limit)
    scores, going = jax.lax.top_k(jnp.where(over, new.scores + NONE, new.scores), beams)
    # Candidates after the first K only replace those that end; if they end, they are dropped.
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
    """Returns (beam, extensions): J one-token extensions, and the beam int32[B, J] of each.

    These are the extensions with the highest log-probabilities, over all beams of a prompt.

    J is large enough that K candidates are unfinished even if the likeliest tokens of every beam
    are all the stop tokens.
    """
    rows, beams = search.alive.scores.shape
    vocabulary = logits.shape[-1]
    log_probs = jax.nn.log_softmax(logits).reshape(rows, beams, vocabulary)
    totals = (log_probs + search.alive.scores[..., None]).reshape(rows, -1)
    count = min(max(2, 1 + len(search.stops)), vocabulary) * beams
    scores, place = jax.lax.top_k(totals, count)
    beam, token = place // vocabulary, (place % vocabulary).astype(jnp.int32)
    log_prob = jnp.take_along_axis(log_probs.reshape(rows, -1), place, axis=1)
    new = search.alive.among(beam).longer(token, log_prob, search.count)
    return beam, new.replace(scores=scores)


def _of_rows(cache: KVCache, rows: jax.Array) -> KVCache:  # int32[n]
    """Returns a cache whose row i is a copy of row `rows[i]` of this one."""
    stored = jax.tree.map(lambda held: held[:, rows], cache.stored)
    layout = jax.tree.map(lambda held: held[rows], cache.layout)
    return cache.replace(stored=stored, layout=layout)
