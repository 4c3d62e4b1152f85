"""Rematerialisation policies: which activations of a layer are kept for the backward pass."""

from typing import Any

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from jaxtune.display.errors import UserError

# "dots" keeps the outputs of linear maps by name. JAX's policies that keep every dot product would
# also keep the adapter's. With "none" a layer is not wrapped at all, since a policy that keeps
# everything would overrule `quant.dot`, and would keep every dequantised weight. "offload" keeps
# what "full" keeps, the input of each layer, in the memory of the host.
REMAT = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["input"],
        offload_src="device",
        offload_dst="pinned_host",
    ),
    "dots": jax.checkpoint_policies.save_only_these_names("linear"),
    "none": None,
}


def rematerialised(layer: type[nn.Module], remat: str) -> Any:
    """Returns a layer that recomputes its activations as a key of `REMAT` says."""
    if remat not in REMAT:
        raise UserError(f"remat {remat!r}: expected one of {', '.join(REMAT)}")
    policy = REMAT[remat]
    return nn.remat(layer, prevent_cse=False, policy=policy) if policy else layer


def named(x: jax.Array, name: str = "linear") -> jax.Array:
    """Names the output of a linear map, or the "input" of a layer, for the policies of `REMAT`."""
    return checkpoint_name(x, name)
