"""What of a layer's forward pass is kept for the backward pass; the rest is computed again."""

from collections.abc import Callable

import jax
from jax.ad_checkpoint import checkpoint_name

# What linear maps give is kept by name: as "every product", the adapter's would be kept beside it.
REMAT = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_only_these_names("linear"),
    "none": jax.checkpoint_policies.everything_saveable,
}


def policy(remat: str) -> Callable:
    """JAX's policy for one of `REMAT`."""
    if remat not in REMAT:
        raise ValueError(f"remat {remat!r}: expected one of {', '.join(REMAT)}")
    return REMAT[remat]


def named(projected: jax.Array) -> jax.Array:
    """What a linear map gives, as `REMAT` speaks of it."""
    return checkpoint_name(projected, "linear")
