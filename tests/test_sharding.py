import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from jaxtune import sharding, tree
from jaxtune.sharding import (
    Undivided,
    described,
    device_bytes,
    fitted,
    make_mesh,
    of_state,
    undivided,
)


def test_minus_one_takes_what_is_left():
    devices = np.arange(8)
    assert dict(make_mesh({"data": 2, "fsdp": -1}, devices).shape) == {"data": 2, "fsdp": 4}


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        ({"data": 3}, "expected sizes whose product is the device count, 8"),
        (
            {"data": 1, "fsdp": 3},
            r"fsdp=3: .* count, 8: each a divisor of it \(1, 2, 4, 8\), or -1",
        ),
        ({"data": 16}, "expected sizes whose product is the device count, 8"),
        ({"data": 3, "fsdp": -1}, "expected sizes whose product is the device count, 8"),
        ({"data": -1, "fsdp": -1}, "and -1 at most once"),
        ({"data": 0}, "expected positive sizes"),
    ],
)
def test_a_mesh_that_cannot_be(axes, says):
    with pytest.raises(ValueError, match=says):
        make_mesh(axes, np.arange(8))


MESH = AbstractMesh((2, 4), ("fsdp", "tensor"))


@pytest.mark.parametrize(
    ("spec", "shape", "expected"),
    [
        (PartitionSpec("fsdp", "tensor"), (6, 8), ("fsdp", "tensor")),
        (PartitionSpec("fsdp", "tensor"), (6, 6), ("fsdp", None)),
        (PartitionSpec("data", "tensor"), (6, 8), (None, "tensor")),
        (
            PartitionSpec(
                ("fsdp", "tensor"),
            ),
            (8, 3),
            (("fsdp", "tensor"),),
        ),
        (
            PartitionSpec(
                ("fsdp", "tensor"),
            ),
            (4, 3),
            (None,),
        ),
        (
            PartitionSpec(
                ("data", "fsdp"),
            ),
            (4, 3),
            ("fsdp",),
        ),
    ],
)
def test_axes_that_do_not_fit_are_left_out(spec, shape, expected):
    assert fitted(spec, shape, MESH) == PartitionSpec(*expected)


def test_a_spec_longer_than_the_shape_is_an_error():
    with pytest.raises(ValueError, match="more entries"):
        fitted(PartitionSpec(None, "fsdp"), (4,), MESH)


@pytest.mark.slow
def test_every_leaf_of_every_family_has_a_rule(pair):
    from jaxtune import tree
    from tests.reference import CASES

    mesh = make_mesh({"fsdp": 1, "tensor": 1}, jax.devices()[:1])
    for name in CASES:
        params = tree.flatten(pair(name).variables["params"])
        shapes = {path: leaf.shape for path, leaf in params.items()}
        found = sharding.shardings(shapes, mesh)
        assert found.keys() == shapes.keys()
        # Everything that is a matrix is split; norms and biases are whole everywhere.
        for path, where in found.items():
            assert any(where.spec) == path.endswith("/w"), path


def test_a_state_lies_as_the_weights_it_is_for():
    mesh = AbstractMesh((2, 2), ("fsdp", "tensor"))
    zeros = jax.ShapeDtypeStruct
    adapter = {"a": zeros((3, 8, 2), "float32"), "b": zeros((3, 2, 8), "float32")}
    layers = {"attn": {"q": {"w": adapter}, "o": {"w": adapter}}}
    made = {"step": zeros((), "int32"), "mu": {"lora": {"layers": layers}}}
    found = {path: tuple(each.spec) for path, each in tree.flatten(of_state(made, mesh)).items()}
    assert found == {
        "step": (),
        "mu/lora/layers/attn/q/w/a": (None, "fsdp", None),
        "mu/lora/layers/attn/q/w/b": (None, None, ("tensor", "fsdp")),
        "mu/lora/layers/attn/o/w/a": (None, ("tensor", "fsdp"), None),
        "mu/lora/layers/attn/o/w/b": (None, None, "fsdp"),
    }
    # Fewer dimensions than the weight has: whole on every device.
    row = {"v_row": {"layers": {"attn": {"q": {"w": zeros((3, 8), "float32")}}}}}
    assert [tuple(each.spec) for each in jax.tree.leaves(of_state(row, mesh))] == [()]


def test_dimensions_that_an_axis_does_not_divide():
    mesh = AbstractMesh((4, 1), ("fsdp", "tensor"))
    shapes = {"embed/w": (9, 6), "layers/attn/q/w": (2, 8, 3), "norm/scale": (6,)}
    # `tensor` has one device, over which nothing is to be split.
    assert undivided(shapes, mesh) == {"embed/w": (Undivided(("fsdp",), 6),)}
    # A leaf that one of two axes splits is not as small as the rules make it.
    shapes["layers/attn/q/w"] = (2, 6, 8)
    found = undivided(shapes, AbstractMesh((4, 2), ("fsdp", "tensor")))
    assert found["layers/attn/q/w"] == (Undivided(("fsdp",), 6),)
    assert found["embed/w"] == (Undivided(("tensor",), 9), Undivided(("fsdp",), 6))


def test_bytes_of_a_device():
    mesh = AbstractMesh((4, 2), ("fsdp", "tensor"))
    split = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
    whole = NamedSharding(mesh, PartitionSpec())
    leaves = {
        "matrix": jax.ShapeDtypeStruct((8, 6), "float32"),
        "codes": jax.ShapeDtypeStruct((8, 6), "uint8"),
        "norm": jax.ShapeDtypeStruct((6,), "bfloat16"),
        "key": jax.eval_shape(lambda: jax.random.key(0)),  # two words of 32 bits
    }
    where = {"matrix": split, "codes": split, "norm": whole, "key": whole}
    found = described(leaves, where)
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in found.items()} == {
        name: (leaf.shape, leaf.dtype) for name, leaf in leaves.items()
    }
    assert {name: leaf.sharding for name, leaf in found.items()} == where
    sizes = {name: device_bytes(leaf) for name, leaf in found.items()}
    assert sizes == {"matrix": 2 * 3 * 4, "codes": 2 * 3, "norm": 6 * 2, "key": 8}
    assert device_bytes(found) == sum(sizes.values())


def test_arrays_are_described_where_they_are():
    arrays = {"x": jnp.ones((3, 5), jnp.bfloat16)}
    (leaf,) = described(arrays).values()
    assert (leaf.shape, leaf.dtype) == ((3, 5), jnp.bfloat16)
    assert leaf.sharding == arrays["x"].sharding
    assert device_bytes(arrays) == arrays["x"].nbytes == 30
