"""What a run says of its numbers, and the choices of kernels that are kept with it."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import compiler

from jaxtune.runs import numerics
from jaxtune.runs.plan import targets
from tests.models.test_programs import made

ROOT = Path(__file__).parents[2]
COST = "the work of precision='default'"


def told(platform: str, kind: str, capability: str | None = None, **fields) -> str:
    """The lines on a model's numbers on a device."""
    device = SimpleNamespace(platform=platform, device_kind=kind)
    if capability:
        device.compute_capability = capability
    mesh = SimpleNamespace(devices=np.array([device]))
    return " ".join(" ".join(numerics.told(made("lora", **fields)[0], mesh)).split())


@pytest.mark.parametrize(
    "device, precision, line",
    [
        (("cpu", "cpu"), "auto", "float32 in float32 (highest)"),
        (("tpu", "TPU v5e"), "auto", f"float32 in 6 bfloat16 passes (highest), 6 times {COST}"),
        (("tpu", "TPU v5e"), "bf16x3", f"float32 in 3 bfloat16 passes (bf16x3), 3 times {COST}"),
        (("tpu", "TPU v5e"), "default", "float32 in 1 bfloat16 pass (default)"),
        (
            ("gpu", "NVIDIA A100-SXM4-40GB", "8.0"),
            "auto",
            f"float32 in float32 (highest), 8 times {COST}",
        ),
        (("gpu", "NVIDIA A100-SXM4-40GB", "8.0"), "tf32", "float32 in TF32 (tf32)"),
        (("gpu", "Tesla T4", "7.5"), "auto", "float32 in float32 (highest)"),
        (("gpu", "Tesla T4", "7.5"), "default", "float32 in float32 (default)"),
        (("gpu", "a GPU of next year", "20.0"), "auto", "float32 in float32 (highest)"),
    ],
)
def test_the_precision_is_told_with_its_cost(device, precision, line):
    assert told(*device, precision=precision).startswith(f"precision products of {line} resuming")


def test_bfloat16_is_told():
    found = told("tpu", "TPU v5e", dtype=jnp.bfloat16)
    assert "products of bfloat16, summed in float32; of float32 in 1 bfloat16 pass" in found


def test_what_a_resumed_run_computes_is_told():
    for device in (("cpu", "cpu"), ("tpu", "TPU v4")):
        assert told(*device).endswith("resuming to the bit")
    assert "resuming up to rounding" in told("gpu", "Tesla T4", "7.5")
    assert "to the bit on such GPUs" in told("gpu", "Tesla T4", "7.5", deterministic=True)


def chosen_into() -> str:
    """The folder that XLA is told to keep its choices of kernels in."""
    options = compiler.get_compile_options(1, 1).executable_build_options
    return options.debug_options.xla_gpu_per_fusion_autotune_cache_dir


@pytest.fixture
def on_a_gpu(monkeypatch):
    """What the configuration of JAX is like on a GPU whose user keeps no compiled programs."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_choices_of_kernels_are_kept_with_a_run_on_a_gpu(on_a_gpu, tmp_path):
    with numerics.kept_kernels(tmp_path):
        assert chosen_into().startswith(str(tmp_path / "kernels"))
        with numerics.kept_kernels(tmp_path / "of another run"):
            assert chosen_into().startswith(str(tmp_path / "kernels"))
        jax.jit(lambda x: x * 3 + 1)(jnp.ones(3)).block_until_ready()
    assert chosen_into() == ""
    assert [each for each in tmp_path.rglob("*") if each.is_file()] == []  # no programs beside them


def test_choices_of_kernels_stay_where_the_user_keeps_programs(on_a_gpu, monkeypatch, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    with numerics.kept_kernels(tmp_path):
        assert chosen_into().startswith(str(tmp_path / "mine"))
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    jax.config.update("jax_compilation_cache_dir", None)
    with numerics.kept_kernels(tmp_path):
        assert chosen_into() == ""  # a CPU has no choice


COMPILED = """
import json, re
import jax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtune import sharding
from jaxtune.runs.plan.targets import target
from jaxtune.training.objectives import CROSS_ENTROPY
from jaxtune.training.optim import optimizer
from jaxtune.training.step import TrainState, compiled_step
from tests.models.test_programs import batch, made

mesh = sharding.make_mesh(dict(fsdp=1), target("a100-40").devices())
here = NamedSharding(mesh, PartitionSpec())


def scatters(**fields):
    model, variables, rules = made("full", **fields)
    chosen = optimizer("sgd")
    state = TrainState.create(variables, trainable=rules, optimizer=chosen)
    given = (state.replace(frozen=None), state.frozen, batch())
    given = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), given)
    text = compiled_step.trace(model, chosen, *given, CROSS_ENTROPY).lower().compile().as_text()
    products = re.findall(r"operand_precision={(.*?)}", text)
    lines = [line for line in text.splitlines() if re.search(r" scatter\\(", line)]
    return [["unique_indices=true" in line for line in lines], sorted(set(products))]


print(json.dumps([scatters(), scatters(deterministic=True)]))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not any(importlib.util.find_spec(name) for name in targets.CUDA_PLUGINS),
    reason="needs pip install 'jax-cuda12-plugin[with-cuda]'",
)
def test_a_step_compiled_for_a_gpu_adds_in_one_order_and_in_float32():
    """XLA sorts what is scattered, so that every index is written once."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    path = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    command = [sys.executable, "-c", COMPILED]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (plain, exact), (ordered, same) = json.loads(done.stdout.splitlines()[-1])
    assert plain and not all(plain)
    assert ordered and all(ordered)
    assert exact == same == ["highest,highest"]
