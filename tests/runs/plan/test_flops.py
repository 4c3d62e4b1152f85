"""Operations of a traced program, beside the arithmetic by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import Primitive
from jax.sharding import PartitionSpec

from jaxtune.runs.plan.flops import flops

A, B, C = 3, 5, 7
ONE = 2 * A * B * B  # x · w
X, W = jax.ShapeDtypeStruct((A, B), jnp.float32), jax.ShapeDtypeStruct((B, B), jnp.float32)


def counted(function, *arguments) -> float:
    return flops(jax.jit(function).trace(*arguments).jaxpr)


def scanned(x, w, length=4):
    return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=length)[0]


def test_a_product_counts_two_for_each_multiply_add():
    other = jax.ShapeDtypeStruct((B, C), jnp.float32)
    assert counted(jnp.matmul, X, other) == 2 * A * B * C
    batched = jax.ShapeDtypeStruct((9, A, B), jnp.float32)
    assert counted(partial(jnp.einsum, "bij,bkj->bik"), batched, batched) == 2 * 9 * A * A * B


def test_elementwise_operations_do_not_count():
    assert counted(lambda x: jnp.exp(x) * x + x.sum(), X) == 0


def test_a_scan_is_multiplied_out():
    assert counted(scanned, X, W) == 4 * ONE
    nested = partial(scanned, length=2)

    def twice(x, w):
        return jax.lax.scan(lambda x, _: (nested(x, w), None), x, length=3)[0]

    assert counted(twice, X, W) == 6 * ONE


def test_a_loop_of_unknown_length_counts_once():
    def loop(x, w):
        return jax.lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ w, x)

    assert counted(loop, X, W) == ONE


def test_of_branches_the_costliest_counts():
    def branch(x, w):
        return jax.lax.cond(x.sum() > 0, lambda: x @ w, lambda: (x @ w) @ w)

    assert counted(branch, X, W) == 2 * ONE


def test_a_backward_pass_takes_two_more_products_and_remat_a_third():
    def loss(layer, x, w):
        return layer(layer(x, w), w).sum()

    plain = counted(jax.grad(partial(loss, lambda x, w: jnp.tanh(x @ w)), (0, 1)), X, W)
    assert plain == 2 * 3 * ONE
    layer = jax.checkpoint(lambda x, w: jnp.tanh(x @ w))
    assert counted(jax.grad(partial(loss, layer), (0, 1)), X, W) == 2 * 4 * ONE


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution(groups):
    image = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 4 // groups, 6), jnp.float32)
    convolution = partial(
        jax.lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    assert counted(convolution, image, kernel) == 2 * (2 * 6 * 6 * 6) * (3 * 3 * 4 // groups)


@pytest.mark.parametrize(
    "name, products",
    [("dot_product_attention_fwd_wrapper", 2), ("dot_product_attention_bwd_wrapper", 5)],
)
def test_a_fused_kernel_counts_by_its_name(name, products):
    kernel = Primitive(name)
    kernel.def_abstract_eval(lambda q, k, v: q)
    queries = jax.ShapeDtypeStruct((2, 16, 4, 8), jnp.bfloat16)
    keys = jax.ShapeDtypeStruct((2, 32, 2, 8), jnp.bfloat16)
    # Rows × heads × queries × keys × head size, of which a causal mask leaves half.
    expected = products * 2 * (2 * 4 * 16 * 32 * 8) * 0.5
    assert flops(jax.make_jaxpr(kernel.bind)(queries, keys, keys)) == expected


def test_names_of_fused_kernels_are_those_of_jax():
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    names = {each.name for each in vars(cudnn).values() if isinstance(each, Primitive)}
    assert {
        "dot_product_attention_fwd_wrapper",
        "dot_product_attention_bwd_wrapper",
    } <= names


def test_each_of_the_devices_of_a_shard_map_counts():
    """Shapes within it are those of one device, and the whole program is counted."""
    mesh = jax.sharding.AbstractMesh((4,), ("fsdp",))
    spec = PartitionSpec("fsdp")
    product = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(spec, PartitionSpec()), out_specs=spec)
    x = jax.ShapeDtypeStruct((4 * A, B), jnp.float32)
    assert flops(jax.make_jaxpr(product)(x, W)) == 4 * ONE
