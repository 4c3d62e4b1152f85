"""Rematerialisation policies: which activations of a layer are kept for the backward pass."""

from collections.abc import Callable

import jax
from jax.ad_checkpoint import checkpoint_name

# "dots" keeps the outputs of linear maps by name. JAX's policies that keep every dot product would
# also keep the adapter's.
REMAT = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_only_these_names("linear"),
    "none": jax.checkpoint_policies.everything_saveable,
}


def policy(remat: str) -> Callable:
    """Returns JAX's checkpoint policy for a key of `REMAT`."""
    if remat not in REMAT:
        raise ValueError(f"remat {remat!r}: expected one of {', '.join(REMAT)}")
    return REMAT[remat]


def named(projected: jax.Array) -> jax.Array:
    """Names the output of a linear map, so that the "dots" policy of `REMAT` keeps it."""
    return checkpoint_name(projected, "linear")
