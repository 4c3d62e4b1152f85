"""Processes of a test's own, with as many devices as it wants."""

import importlib.metadata
import os

# Compiling is most of the suite's time, for programs that run once: without LLVM's optimisations
# and the newer emitters of fusions it takes half. What XLA makes of a program stays the same. The
# older emitters are gone from JAX 0.11, whose XLA ends a process for a flag that it does not know.
# Programs this small take a quarter less in one piece than in pieces that threads compile.
LIGHT = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    LIGHT += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"


def environment(count: int) -> dict[str, str]:
    """That of this process, for one whose CPU is `count` devices."""
    return os.environ | {"XLA_FLAGS": f"{LIGHT} --xla_force_host_platform_device_count={count}"}
