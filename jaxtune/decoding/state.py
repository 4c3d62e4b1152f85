"""State of the decoding loop, and the answers in it.

Axes: B answers, N the most tokens an answer has room for, V the vocabulary.
"""

import jax
import numpy as np
from flax import struct

from jaxtune.decoding.requests import Completion
from jaxtune.decoding.sampling import Sampling
from jaxtune.display.errors import UserError
from jaxtune.models.cache import KVCache
from jaxtune.models.paligemma import Model
from jaxtune.sharding import to_host


class NotFiniteError(UserError):
    """Logits that are NaN, or infinite for the token that was chosen."""

    def __init__(self, model: Model):
        super().__init__(
            f"the logits of {model.origin or 'the model'}, with its adapter if it has one, are not "
            "finite numbers: its weights hold NaN or infinity, or values that overflow; use an "
            "earlier checkpoint, or set model.compute to 'float32'"
        )


@struct.dataclass
class DecodeState:
    """State of the decoding loop for a batch of answers, one per row."""

    cache: KVCache  # of all tokens but the last
    tokens: jax.Array  # int32[B, N], -1 where an answer has no token
    log_probs: jax.Array  # float32[B, N], log-probabilities of the tokens before sampling filters
    count: jax.Array  # int32[], columns of `tokens` filled so far, the same in every row
    limit: jax.Array  # int32[B], limit on the tokens of each answer
    length: jax.Array  # int32[B], tokens of each prompt
    ended: jax.Array  # bool[B]
    stops: jax.Array  # int32[n]
    sampling: Sampling
    seen: jax.Array | None  # bool[B, V], tokens whose repetition is penalised; None: no penalty
    keys: jax.Array  # [B], random keys


def collected(model: Model, under_way: DecodeState, rows: int) -> list[Completion]:
    """Returns the answers of the first `rows` rows, each without the padding after its end.

    Raises NotFiniteError if the logits behind any of their tokens were not finite.
    """
    tokens, log_probs = to_host(under_way.tokens), to_host(under_way.log_probs)
    stops = set(to_host(under_way.stops).tolist())
    found = []
    for row in range(rows):
        length = int((tokens[row] >= 0).sum())
        answer, its = tokens[row, :length].tolist(), log_probs[row, :length].tolist()
        if not np.isfinite(its).all():
            raise NotFiniteError(model)
        found.append(Completion(answer, its, ended=bool(answer) and answer[-1] in stops))
    return found
