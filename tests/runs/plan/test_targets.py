"""Targets by name, their messages, and the devices of this machine."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jaxtune.display.errors import UserError
from jaxtune.runs.plan import targets
from jaxtune.runs.plan.published import CHIPS
from jaxtune.runs.plan.targets import at_hand, machine_memory, target

ROOT = Path(__file__).parents[3]
GiB = 2**30


@pytest.mark.parametrize(
    "text, count, title",
    [
        ("v5e", 1, "TPU v5e"),
        ("v5e:1x1", 1, "TPU v5e"),
        ("v5e:2x4", 8, "8 × TPU v5e"),
        ("v5p:2x2x1", 4, "4 × TPU v5p"),
        ("V4:4x4x4", 64, "64 × TPU v4"),
        ("h100", 1, "NVIDIA H100 80 GB"),
        ("h100:8", 8, "8 × NVIDIA H100 80 GB"),
        ("a100-40:16", 16, "16 × NVIDIA A100 40 GB"),
    ],
)
def test_a_name_and_a_topology(text, count, title):
    found = target(text)
    assert (found.name, found.count, found.title) == (text.lower(), count, title)
    assert found.chip is CHIPS[text.lower().partition(":")[0]]
    assert found.limit_bytes == found.chip.limit()


@pytest.mark.parametrize(
    "text, told",
    [
        (
            "v5f",
            r"^'v5f' is not a target \(did you mean v5\w\?\); choose from v4, v5e, v5p, v6e, t4",
        ),
        ("a100", r"'a100' is not a target \(did you mean a100-40\?\)"),
        ("", r"^'' is not a target; choose from v4, .* such as v5e:2x4 or h100:8$"),
        (
            "v5e:3x3",
            r"^TPU v5e has no topology '3x3'; choose from 1x1, 2x2, 2x4",
        ),
        ("v5e:8", r"no topology '8' \(did you mean v5e:2x4\?\)"),
        ("v5e:4x2", r"no topology '4x2' \(did you mean v5e:2x4\?\)"),
        ("v5p:2x4", r"no topology '2x4' \(did you mean v5p:2x2x2\?\)"),
        ("v5e:", r"no topology ''; choose from 1x1, 2x2, 2x4"),
        (
            "h100:9",
            r"^NVIDIA H100 80 GB: found '9' after the colon, expected the number of .* 1 to 8",
        ),
        ("h100:", r"found '' after the colon"),
        ("h100:0", r"found '0' after the colon"),
        ("h100:2x4", r"found '2x4' after the colon"),
        ("h100:²", r"found '²' after the colon"),
        ("rtx4050:2", r"the number of GPUs in one host, which is 1$"),
        ("v5e:" + "2x" * 9000, r"^TPU v5e has no topology '2x2x.*…"),
        ("h100:" + "9" * 9000, r"^NVIDIA H100 80 GB: found '999.*…"),
        ("x" * 9000, r"is not a target"),
    ],
)
def test_what_is_no_target_is_refused(text, told):
    with pytest.raises(UserError, match=told) as caught:
        target(text)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "text, told",
    [
        ("v5e", r"TPU v5e is not installed; .* libtpu: pip install 'jax\[tpu\]==[0-9.]+'$"),
        ("t4", r"'jax-cuda12-plugin\[with-cuda\]==" + jax.__version__ + "'$"),
    ],
)
def test_a_missing_compiler_is_named_with_its_package(monkeypatch, text, told):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=told):
        target(text).devices()


def test_a_compiler_that_does_not_start_is_one_message(monkeypatch):
    from jax.experimental import topologies

    def broken(**topology):
        assert os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] == "1"
        raise RuntimeError("no symbol")

    monkeypatch.delenv("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", raising=False)
    monkeypatch.setattr(topologies, "get_topology_desc", broken)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    with pytest.raises(UserError, match=r"NVIDIA T4 did not start; .* to jax .*: no symbol$"):
        target("t4").devices()
    assert "JAX_SKIP_CUDA_CONSTRAINTS_CHECK" not in os.environ


def test_names_are_looked_up_without_jax():
    code = "import sys; from jaxtune.runs.plan.targets import target; target('v5e:2x4')"
    command = [sys.executable, "-c", f"{code}; print('jax' in sys.modules)"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"


def test_the_devices_at_hand_share_the_memory_of_the_machine():
    found = at_hand()
    assert found.devices() == jax.devices()
    assert (found.name, found.chip, found.count) == ("", None, jax.device_count())
    assert found.limit_bytes == machine_memory() // jax.local_device_count() > GiB // 8


def test_a_device_at_hand_tells_its_limit_and_its_chip(monkeypatch):
    class Device:
        platform = "gpu"
        device_kind = "NVIDIA L4"

        def memory_stats(self):
            return {"bytes_limit": 17 * GiB}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device(), Device()])
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    found = at_hand()
    assert (found.title, found.limit_bytes) == ("2 × NVIDIA L4", 17 * GiB)
    assert found.chip is CHIPS["l4"]


@pytest.mark.parametrize(
    "groups, files, limit",
    [
        ("0::/", {"sys/fs/cgroup/memory.max": "max\n"}, None),
        ("0::/", {"sys/fs/cgroup/memory.max": "1073741824\n"}, GiB),
        ("0::/a/b", {"sys/fs/cgroup/a/memory.max": "4096"}, 4096),
        ("4:cpu,memory:/a", {"sys/fs/cgroup/memory/a/memory.limit_in_bytes": "8192"}, 8192),
        ("4:memory:/", {"sys/fs/cgroup/memory/memory.limit_in_bytes": str(2**63 - 4096)}, None),
        ("3:cpuset:/a", {"sys/fs/cgroup/a/memory.max": "4096"}, None),
        (None, {}, None),
    ],
)
def test_the_memory_of_a_machine_is_at_most_that_of_its_control_group(
    tmp_path, groups, files, limit
):
    if groups is not None:
        files = {**files, "proc/self/cgroup": groups + "\n"}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert machine_memory(tmp_path) == (limit or physical)


COMPILE = """
import sys
from jaxtune.runs.plan.targets import compile_only, target
compile_only()
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
for name in sys.argv[1:]:
    chosen = target(name)
    devices = chosen.devices()
    assert len(devices) == chosen.count, name
    assert devices[0].device_kind in chosen.chip.kinds, devices[0].device_kind
    where = NamedSharding(Mesh(np.asarray(devices), ("data",)), PartitionSpec("data"))
    rows = jax.ShapeDtypeStruct((chosen.count, 256), "float32", sharding=where)
    compiled = jax.jit(lambda x: (x @ x.T).sum()).lower(rows).compile()
    assert compiled.memory_analysis().peak_memory_in_bytes > 0, name
{more}
"""
# The limit that the table has is the one that the compiler names.
LIMIT = """
    huge = jax.ShapeDtypeStruct((chosen.count, 2**36), "float32", sharding=where)
    try:
        jax.jit(lambda x: x * 2).lower(huge).compile()
    except Exception as problem:
        told = f"available HBM ({chosen.limit_bytes / 2**30:.2f}G)"
        assert told in str(problem), str(problem)[:300]
    else:
        raise AssertionError(name)
"""


def compiled(*names: str, more: str = "") -> None:
    """Compiles a small program for each target, in a process with a clean environment."""
    command = [sys.executable, "-c", COMPILE.replace("{more}", more), *names]
    # libtpu ends the process over flags of other backends, such as those of tests/conftest.py.
    clean = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    found = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs libtpu")
def test_tpus_are_described_and_their_limits_are_those_of_libtpu():
    compiled("v5e", "v4", "v5p", "v6e", "v5e:2x4", "v5e:4x4", "v4:2x2x1", "v5p:2x2x2", more=LIMIT)


@pytest.mark.slow
@pytest.mark.skipif(
    not any(importlib.util.find_spec(name) for name in targets.CUDA_PLUGINS),
    reason="needs pip install 'jax-cuda12-plugin[with-cuda]'",
)
def test_gpus_are_described():
    compiled(*(name for name in CHIPS if not name.startswith("v")), "h100:8")
