"""The GPU that a call is compiled for, and the share of each device of a mesh."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from jaxtune.models import device
from tests import devices

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("said, read", [("8.6", 8.6), ("12.0", 12.0), ("gfx942", 0), (None, 0)])
def test_capability_of_a_gpu(monkeypatch, said, read):
    class Device:
        compute_capability = said

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [Device])
    q = jnp.zeros((1, 1, 1, 8))
    assert device.capability(q) == read
    monkeypatch.setattr(device, "mesh_of", lambda q: mesh("NVIDIA X1"))
    monkeypatch.setitem(device.CAPABILITY, "NVIDIA X1", "9.0")
    assert device.capability(q) == 9.0  # of the device that the mesh is made of
    monkeypatch.setattr(device, "mesh_of", lambda q: mesh("another"))
    assert device.capability(q) == read


def mesh(kind):
    return SimpleNamespace(abstract_device=SimpleNamespace(device_kind=kind))


SPREAD = """
import jax, numpy as np
from functools import partial
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jaxtune.models.layout import arrange
from tests.models.attention_cases import SCALE, SUMS, both, compare, cudnn, splash, tensors

mesh = Mesh(np.array(jax.devices()).reshape(2, 2, 2), ("data", "fsdp", "tensor"))
described = {name: np.tile(value, (2, 1)) for name, value in both(128).items()}
arrays = tensors(batch=4, length=128, heads=4, kv_heads=2, size=16)
placed = jax.device_put(arrays, NamedSharding(mesh, P(("data", "fsdp"), None, "tensor")))
compare(splash, described, placed, SUMS, (40, None), 0)
compare(cudnn, described, placed, SUMS, (40, None), 0)
run = partial(splash, layout=arrange((4, 128)), kind=0, windows=(None,), scale=SCALE)
assert "all-gather" not in jax.jit(run).lower(*placed).compile().as_text()

# Two rows for four devices, and one key head for two: whatever does not divide stays whole.
arrays = tensors(length=128, heads=2, kv_heads=1, size=16)
placed = jax.device_put(arrays, NamedSharding(mesh, P()))
compare(splash, {}, placed, SUMS)
run = partial(splash, layout=arrange((2, 128)), kind=0, windows=(None,), scale=SCALE)
assert "shard_map" in str(jax.make_jaxpr(run)(*placed))
with jax.set_mesh(mesh):
    assert "shard_map" in str(jax.make_jaxpr(run)(*arrays))
print("spread")
"""


@pytest.mark.slow
def test_each_device_attends_to_its_share():
    environment = devices.environment(8) | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": "."}
    command = [sys.executable, "-c", SPREAD]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "spread\n", done.stderr[-3000:]
