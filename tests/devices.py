"""Processes of a test's own, with as many devices as it wants."""

import os

# What LLVM adds by trying harder is a quarter of the suite's time, for programs that run once.
LIGHT = "--xla_backend_optimization_level=0"


def environment(count: int) -> dict[str, str]:
    """That of this process, for one whose CPU is `count` devices."""
    return os.environ | {"XLA_FLAGS": f"{LIGHT} --xla_force_host_platform_device_count={count}"}
