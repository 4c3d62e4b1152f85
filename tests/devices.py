"""Processes of a test's own, with as many devices as it wants."""

import os

# Compiling is most of the suite's time, for programs that run once: without LLVM's optimisations
# and the newer emitters of fusions it takes half. What XLA makes of a program stays the same.
LIGHT = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


def environment(count: int) -> dict[str, str]:
    """That of this process, for one whose CPU is `count` devices."""
    return os.environ | {"XLA_FLAGS": f"{LIGHT} --xla_force_host_platform_device_count={count}"}
