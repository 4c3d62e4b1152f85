"""The TPU compiler takes the fused kernel as the model calls it; no TPU is needed for that.

Needs `pip install 'jax[tpu]'`. Runs apart, as libtpu wants its environment before JAX is imported.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("libtpu")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]

COMPILE = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jaxtune.models.decoder import Decoder, DecoderConfig, LayerKind
from jaxtune.models.rope import default

chips = np.array(topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices)


def compile(attention, size, length, mesh=(1, 1), rows=1, packed=False, softcap=50.0):
    mesh = Mesh(chips[: mesh[0] * mesh[1]].reshape(mesh), ("data", "tensor"))
    layers = (LayerKind(default(1e4, size), 512), LayerKind(default(1e4, size))) * 2
    sizes = dict(vocabulary=1024, width=512, hidden=1024, heads=8, kv_heads=4, head_size=size)
    rest = dict(layers=layers, context=length, query_scale=size**-0.5, tied=True)
    config = DecoderConfig(**sizes, **rest, attention_softcap=softcap)
    model = Decoder(config, dtype=jnp.bfloat16, attention=attention)

    def shape(dtype, dims, spec):
        return jax.ShapeDtypeStruct(dims, dtype, sharding=NamedSharding(mesh, spec))

    def loss(variables, tokens, segments):
        return model.apply(variables, tokens, segments=segments).sum()

    tokens = jnp.zeros((1, length), jnp.int32)
    variables = jax.eval_shape(Decoder(config).init, jax.random.key(0), tokens)
    variables = jax.tree.map(lambda x: shape(jnp.bfloat16, x.shape, P()), variables)
    batch = shape(jnp.int32, (rows, length), P("data"))
    step = jax.jit(jax.grad(loss)).lower(variables, batch, batch if packed else None).compile()
    calls = step.as_text().count("tpu_custom_call")
    return dict(calls=calls, bytes=step.memory_analysis().temp_size_in_bytes)


print(json.dumps([compile(**each) for each in json.loads(sys.argv[1])]))
"""


def compiled(*calls: dict) -> list[dict]:
    """Kernel calls and temporary bytes of a training step, as the compiler counts them."""
    names = dict(TPU_ACCELERATOR_TYPE="v5litepod-4", TPU_WORKER_HOSTNAMES="localhost")
    environment = dict(os.environ, **names, JAX_PLATFORMS="cpu", PYTHONPATH=".")
    command = [sys.executable, "-c", COMPILE, json.dumps(calls)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_splash_compiles_and_keeps_no_logits():
    long = dict(size=128, length=2048)
    plain, splash = compiled(dict(attention="plain", **long), dict(attention="splash", **long))
    assert plain["calls"] == 0
    # Two windows: forward, forward again under remat, and two kernels backward for each.
    assert splash["calls"] == 8
    # The plain form holds float32[8, 2048, 2048] logits, 128 MiB; seen: 147 MiB against 9.
    assert splash["bytes"] * 8 < plain["bytes"]


def test_splash_compiles_for_narrow_and_wide_heads():
    both = [dict(attention="splash", size=size, length=1100) for size in (64, 256)]
    assert [each["calls"] for each in compiled(*both)] == [8, 8]


def test_auto_finds_the_tpu_on_the_mesh_and_spreads_over_it():
    """Though this process has a CPU: what the arrays lie on decides."""
    whole = dict(attention="auto", size=128, length=1024)
    spread = dict(whole, mesh=(2, 2), rows=2, packed=True)
    assert [each["calls"] for each in compiled(whole, spread)] == [8, 8]
