import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from jaxtune import sharding
from jaxtune.sharding import fitted, make_mesh


def test_minus_one_takes_what_is_left():
    devices = np.arange(8)
    assert dict(make_mesh({"data": 2, "fsdp": -1}, devices).shape) == {"data": 2, "fsdp": 4}


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        ({"data": 3}, "does not use the 8 devices"),
        ({"data": 16}, "does not use the 8 devices"),
        ({"data": 3, "fsdp": -1}, "does not use the 8 devices"),
        ({"data": -1, "fsdp": -1}, "one at most may be -1"),
        ({"data": 0}, "sizes are positive"),
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
