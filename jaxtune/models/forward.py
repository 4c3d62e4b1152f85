"""Forward pass from tokens to logits of chosen positions, for training, decoding and exports.

Axes beyond the decoder's: K chosen positions of a row.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxtune.models.arguments import check_batch, check_model, check_variables
from jaxtune.models.layers import STATES
from jaxtune.models.layout import Layout, arrange
from jaxtune.models.paligemma import Model
from jaxtune.models.programs import program


def embedded(
    model: Model,
    variables: Mapping,
    tokens: jax.Array,  # int32[B, T]
    images: jax.Array | None = None,  # float32[B, I, S, S, 3]
    rngs: Mapping[str, Any] | None = None,
) -> jax.Array:  # [B, T, D]
    """Returns the input of the first layer: embeddings of tokens and of the pictures among them.

    Args:
      model: The model.
      variables: Its variables.
      tokens: Tokens, with placeholders for pictures.
      images: Pictures of each row in order; None for rows without pictures.
      rngs: Random keys by name, such as "dropout" in training.

    Returns:
      Embeddings in the dtype of activations.
    """
    inputs = (tokens,) if images is None else (tokens, images)
    return model.apply(variables, *inputs, method="embed", rngs=rngs or {})


def chosen(hidden: jax.Array, where: jax.Array) -> jax.Array:  # [B, T, D], int32[B, K]
    """Returns the hidden states [B, K, D] of chosen positions, so that only these get logits."""
    return jnp.take_along_axis(hidden, where[..., None], axis=1)


def hidden_at(
    model: Model,
    variables: Mapping,
    tokens: jax.Array,  # int32[B, T]
    layout: Layout,
    where: jax.Array,  # int32[B, K]
    *,
    images: jax.Array | None = None,
    rngs: Mapping[str, Any] | None = None,
) -> jax.Array:  # [B, K, D]
    """Runs the model over whole rows and returns the last hidden states at chosen positions.

    Args:
      model: The model.
      variables: Its variables.
      tokens: Tokens, with placeholders for pictures.
      layout: Positions, segments and order of the tokens.
      where: Indices of the chosen positions in each row.
      images: Pictures of each row in order; None for rows without pictures.
      rngs: Random keys by name, such as "dropout" in training.

    Returns:
      Hidden states after the final norm.
    """
    x = embedded(model, variables, tokens, images, rngs)
    hidden = model.apply(variables, x, layout, method="hidden", rngs=rngs or {})
    return chosen(hidden, where)


def logits(model: Model, variables: Mapping, hidden: jax.Array) -> jax.Array:  # float32[..., V]
    """Returns the logits of the next token for hidden states [..., D]."""
    return model.apply(variables, hidden, method="logits")


@program(static_argnums=0)
def hidden_states(model: Model, variables: Mapping, batch: Any) -> jax.Array:  # [L, B, K, D]
    """Returns the outputs of all layers at the scored positions of a batch, before the final norm.

    Those at other positions are in memory for one row at a time.

    Args:
      model: The model.
      variables: Its variables.
      batch: A `Batch` of arrays [B, …], or any object with its fields; `images` may be missing.
    """
    check_model(model)
    check_variables(variables)
    check_batch(batch)
    images = getattr(batch, "images", None)
    given = (batch.positions, batch.segments, batch.valid, batch.causal)

    def of_row(row: tuple) -> jax.Array:  # [L, K, D]
        tokens, where, images, *given = jax.tree.map(lambda leaf: leaf[None], row)
        x = embedded(model, variables, tokens, images)
        layout = arrange(tokens.shape, *given)
        _, found = model.apply(variables, x, layout, method="hidden", mutable=[STATES])
        (states,) = jax.tree.leaves(found)  # [L, 1, T, D]
        return jnp.take(states[:, 0], where[0], axis=1)

    found = jax.lax.map(of_row, (batch.tokens, batch.where, images, *given))
    return jnp.moveaxis(found, 0, 1)
