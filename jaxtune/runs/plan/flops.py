"""Counts the floating-point operations of a traced program, loops multiplied out."""

import math
from collections.abc import Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr

# Attention that is one operation to JAX, or a loop whose length depends on the mask: how many
# products of queries × keys × head size it takes. A causal mask skips about half of each.
KERNELS = {
    "dot_product_attention_fwd": 2,
    "dot_product_attention_bwd": 5,
    "blockwise_forward": 2,
    "blockwise_backward": 5,
    "pallas_flash_attention_vjp": 7,  # tokamax's; it computes the logits' gradients twice
    "pallas_flash_attention": 2,
}
SKIPPED = 0.5


def flops(program: ClosedJaxpr) -> float:
    """Returns the floating-point operations of matrix products and convolutions in a program.

    A multiply-add counts as two. Iterations of a scan are multiplied out; the body of a loop whose
    number of iterations is not known beforehand counts once; of several branches, the costliest
    counts. What a rematerialised block recomputes counts as often as it is computed, and what each
    device of a `shard_map` computes counts for each.
    """
    return _of_jaxpr(program.jaxpr)


def _of_jaxpr(jaxpr: Jaxpr) -> float:
    return sum(_of_equation(each) for each in jaxpr.eqns)


def _of_equation(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _product(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    called = params["name"] if name in ("jit", "pallas_call") else name
    kernel = next((kernel for kernel in KERNELS if called.startswith(kernel)), None)
    if kernel:
        return _attention(equation, KERNELS[kernel])
    inside = [_of_jaxpr(each) for each in _jaxprs(params)]
    if name == "cond":
        return max(inside)
    if name == "pallas_call":
        return sum(inside) * math.prod(_grid(params)) * SKIPPED
    if name == "shard_map":  # its body has the shapes of one device
        return sum(inside) * math.prod(
            params["mesh"].shape[axis] for axis in params["newly_manual_axes"]
        )
    return sum(inside) * (params["length"] if name == "scan" else 1)


def _jaxprs(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """Yields the programs among the parameters of an operation."""
    for value in params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, ClosedJaxpr):
                yield each.jaxpr
            elif isinstance(each, Jaxpr):
                yield each


def _product(equation: Any) -> float:
    """Returns the operations of a matrix product: two for each output and contracted element."""
    left = equation.invars[0].aval.shape
    (contracted, _), _ = equation.params["dimension_numbers"]
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)


def _convolution(equation: Any) -> float:
    kernel = equation.invars[1].aval.shape
    outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / outputs


def _attention(equation: Any, products: int) -> float:
    """Returns the operations of attention on queries and keys of [B, T, N, H]."""
    queries, keys = (equation.invars[i].aval.shape for i in (0, 1))
    return products * 2 * math.prod(queries) * keys[1] * SKIPPED


def _grid(params: dict[str, Any]) -> Iterator[int]:
    """Yields the sizes of a kernel's grid that are known."""
    return (size for size in params["grid_mapping"].grid if isinstance(size, int))
