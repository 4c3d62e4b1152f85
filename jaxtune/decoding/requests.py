"""Decoding requests: validates prompts and pictures, and pads them into batches."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import NamedSharding

from jaxtune import sharding
from jaxtune.data.batches import fitting, sizes
from jaxtune.display.errors import UserError
from jaxtune.models.arguments import check_model
from jaxtune.models.paligemma import Model

EXPECTED = (
    "expected a list of prompts, each a list of token ids, such as [[2, 10, 20]]. For prompts in "
    "text, call jaxtune.answers(model, variables, texts)"
)
LONGEST = 2**20  # upper limit of padded lengths, in tokens of a prompt or an answer


@dataclass(frozen=True)
class Request:
    """A prompt with its pictures, and the index of one of the samples requested for it."""

    tokens: tuple[int, ...]
    images: Any = None  # float32[I, S, S, 3]; None for a model without pictures
    pictured: int = 0  # number of picture tokens among `tokens`
    sample: int = 0


@dataclass(frozen=True)
class Completion:
    """The tokens that were decoded after a prompt."""

    tokens: list[int]  # the stop token included, if there is one
    log_probs: list[float]  # log-probability of each token
    ended: bool  # whether it ended by itself; False if it reached the token limit


def make_requests(
    model: Model,
    prompts: Sequence[Sequence[int]],
    images: Sequence[Any] | None,  # pictures of each prompt
    new: int,
) -> list[Request]:
    """Returns one request per prompt, with picture tokens put before a prompt that has none.

    Args:
      model: The model, for its vocabulary, context length and picture tokens.
      prompts: Tokens of each prompt.
      images: For each prompt its pictures, [S, S, 3] or [I, S, S, 3], or None.
      new: Number of tokens that an answer may have.

    Returns:
      Requests in the order of the prompts. Raises ValueError for a prompt that is no list of token
      ids, is empty, has a token outside the vocabulary, does not fit the context length with its
      answer, or has another number of picture tokens than its pictures take.
    """
    check_model(model)
    prompts = _token_ids(prompts)
    if images is not None and len(images) != len(prompts):
        raise UserError(
            f"found {len(images)} sets of images for {len(prompts)} prompts: expected one for each"
        )
    requests = [
        _request(model, number, prompt, None if images is None else images[number])
        for number, prompt in enumerate(prompts)
    ]
    _check(model, [request.tokens for request in requests], new)
    return requests


def _token_ids(prompts: Any) -> list[tuple[int, ...]]:
    """Returns the tokens of each prompt; raises ValueError for text and other kinds of values."""
    if isinstance(prompts, str | bytes) or not hasattr(prompts, "__iter__"):
        raise UserError(f"the prompts are {_shown(prompts)}: {EXPECTED}")
    found = []
    for number, prompt in enumerate(prompts):
        try:
            ids = np.asarray(prompt)
        except (TypeError, ValueError, OverflowError):  # such as lists of different lengths
            ids = None
        if ids is None or ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise UserError(f"prompt {number} is {_shown(prompt)}: {EXPECTED}")
        found.append(tuple(ids.tolist()))
    return found


def _shown(value: Any) -> str:
    kind = "text" if isinstance(value, str) else f"a value of type {type(value).__name__}"
    return f"{kind}, {repr(value)[:40]}"


def _request(model: Model, number: int, tokens: tuple[int, ...], images: Any) -> Request:
    """Returns the request of a prompt; raises ValueError if pictures and tokens do not match."""
    wants = model.pictures
    if wants is None:
        if images is not None:
            raise UserError("images were given, but the model takes only text")
        return Request(tokens)
    side = wants.side
    stacked = np.zeros((0, side, side, 3), np.float32) if images is None else np.float32(images)
    if stacked.shape[-3:] != (side, side, 3) or stacked.ndim not in (3, 4):
        raise UserError(
            f"the images of prompt {number} have the shape {stacked.shape}; expected"
            f" [{side}, {side}, 3] or several of these, [I, {side}, {side}, 3]"
        )
    stacked = stacked.reshape(-1, side, side, 3)
    found, expected = tokens.count(wants.token), len(stacked) * wants.tokens
    if expected and not found:
        return Request((wants.token,) * expected + tokens, stacked, expected)
    if found != expected:
        raise UserError(
            f"prompt {number} has {found:,} picture tokens ({wants.token}), but {len(stacked)} "
            f"pictures of {wants.tokens:,} tokens each"
        )
    return Request(tokens, stacked, expected)


def _check(model: Model, prompts: Sequence[Sequence[int]], new: int) -> None:
    """Raises ValueError for a prompt that is empty, too long or outside the vocabulary."""
    vocabulary, context = model.config.vocabulary, model.config.context
    beside = {model.pictures.token} if model.pictures else set()
    for number, prompt in enumerate(prompts):
        if set(prompt) <= beside:
            raise UserError(
                f"prompt {number} is empty: a model needs at least one token to continue"
            )
        if len(prompt) + new > context:
            raise UserError(
                f"prompt {number} has {len(prompt):,} tokens, which with {new:,} new ones exceed "
                f"the model's context length of {context:,}: shorten it, or request fewer new ones"
            )
        if not all(0 <= token < vocabulary or token in beside for token in prompt):
            raise UserError(
                f"prompt {number} has a token outside the vocabulary of {vocabulary:,}: it comes "
                "from another model's tokenizer"
            )


@struct.dataclass
class PaddedPrompts:
    """A batch of prompts, padded on the right to T tokens and with rows of padding to B rows."""

    tokens: jax.Array  # int32[B, T]
    length: jax.Array  # int32[B], tokens of each prompt; 1 in rows of padding
    images: jax.Array | None  # float32[B, I, S, S, 3]; None if no prompt has pictures


def alike(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Yields batches of at most `size` row indices, sorted by length so that padding is small."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    yield from (order[start : start + size] for start in range(0, len(order), size))


def before_switch(model: Model, prompt: Sequence[int], room: int) -> int:
    """Returns how many of `room` new tokens can be decoded before the rope's angles change.

    In a sequence of more than `switch` tokens all tokens have other angles, so that keys in the
    cache become invalid.
    """
    switch = model.config.switch
    return room if switch is None or len(prompt) > switch else min(room, switch + 1 - len(prompt))


def padded_sizes(rows: int, longest: int, fixed: int) -> tuple[int, int]:
    """Returns the rows and tokens that prompts are padded to, of which there are few.

    The number of rows becomes a power of two, and the length one of `data.batches.sizes`, with the
    `fixed` tokens that every prompt has.
    """
    return power_of_two(rows), fitting(longest, sizes(LONGEST, fixed=fixed))


def power_of_two(number: int) -> int:
    """Returns the lowest power of two that is at least a number."""
    return 1 << (number - 1).bit_length()


def padded(variables: Mapping, requests: Sequence[Request]) -> PaddedPrompts:
    """Pads requests to one of few shapes, and puts them on the devices of the weights."""
    fixed = min(request.pictured for request in requests)
    longest = max(len(request.tokens) for request in requests)
    count, width = padded_sizes(len(requests), longest, fixed)
    tokens, length = np.zeros((count, width), np.int32), np.ones(count, np.int32)
    for row, request in enumerate(requests):
        tokens[row, : len(request.tokens)], length[row] = request.tokens, len(request.tokens)
    prompts = PaddedPrompts(
        tokens, length, _side_by_side([request.images for request in requests], count)
    )
    mesh = sharding.mesh_under(variables["params"])
    if mesh is None:
        return jax.tree.map(jnp.asarray, prompts)
    spec = sharding.fitted(sharding.ROWS, (count,), mesh)
    return sharding.put(prompts, NamedSharding(mesh, spec))


def _side_by_side(images: Sequence[Any], count: int) -> np.ndarray | None:
    """Stacks the pictures of each row, padded with zeros; None if there are no pictures.

    The result is float32[count, I, S, S, 3], where I is a power of two.
    """
    most = max(0 if each is None else len(each) for each in images)
    if not most:
        return None
    shape = next(each.shape[1:] for each in images if each is not None)
    found = np.zeros((count, power_of_two(most), *shape), np.float32)
    for row, each in enumerate(images):
        if each is not None:
            found[row, : len(each)] = each
    return found
