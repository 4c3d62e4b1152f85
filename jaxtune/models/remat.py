"""Rematerialisation: which activations of a layer are kept for the backward pass, and how many.

The policies of `REMAT` name those that are kept. Where a layer is computed again as a whole, long
rows go through its MLP in blocks of tokens, so that the activations of one are kept at a time.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from jaxtune import sharding
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
KEEPING = ("dots", "none")  # those that keep activations inside of a layer
BLOCK = 2**13  # bytes of one feature of a block's tokens: 4,096 tokens in 16 bits
SHORTEST = 512  # tokens of a block; a number of tokens without such a divisor is not divided


def rematerialised(layer: type[nn.Module], remat: str) -> Any:
    """Returns a layer that recomputes its activations as a key of `REMAT` says."""
    if remat not in REMAT:
        raise UserError(f"remat {remat!r}: expected one of {', '.join(REMAT)}")
    policy = REMAT[remat]
    return nn.remat(layer, prevent_cse=False, policy=policy) if policy else layer


def by_blocks(each: Callable, module: nn.Module, x: jax.Array, remat: str) -> jax.Array:
    """Applies a method that treats each token alone to blocks of the tokens of long rows.

    Where a layer's activations are computed again in the backward pass, those of one block are in
    memory at a time. All tokens are one block on several devices, as every block would gather
    weights and sum gradients over them, and where a caller asks for what is computed inside.

    Args:
      each: Method of the module, from [B, T, D] to the same shape.
      module: The module.
      x: What it takes, [B, T, D].
      remat: Key of `REMAT`.

    Returns:
      What the method returns for all tokens.
    """
    whole = module.is_initializing() or module.is_mutable_collection("intermediates")
    blocks = 1 if whole or remat in KEEPING else _blocks(x)
    if blocks == 1:
        return each(module, x)

    def of_block(module, _, block):
        return (), each(module, block)

    mapped = nn.scan(
        nn.remat(of_block, prevent_cse=False, policy=REMAT["full"]),
        variable_broadcast=True,
        split_rngs={"dropout": True},
    )
    return mapped(module, (), x.reshape(blocks, 1, -1, x.shape[-1]))[1].reshape(x.shape)


def _blocks(x: jax.Array) -> int:
    """Returns the number of blocks that the tokens of [B, T, D] are treated in."""
    tokens = x.shape[0] * x.shape[1]
    most = BLOCK // x.dtype.itemsize
    if sharding.mesh_of(x).size > 1 or tokens <= most:
        return 1
    blocks = next(parts for parts in sharding.divisors(tokens) if tokens // parts <= most)
    return blocks if tokens // blocks >= SHORTEST else 1


def named(x: jax.Array, name: str = "linear") -> jax.Array:
    """Names the output of a linear map, or the "input" of a layer, for the policies of `REMAT`."""
    return checkpoint_name(x, name)
