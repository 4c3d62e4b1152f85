"""Measures the memory that a process takes for a while, on Linux."""

import ctypes
import gc
import re
from pathlib import Path


def begin() -> int:
    """Gives free memory back to the system; returns the bytes held, from which `above` counts."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the highest resident size is the present one
    return _resident("VmRSS")


def above(held: int) -> int:
    """Returns the most bytes that the process has held since `begin`, above those held then."""
    return max(0, highest() - held)


def highest() -> int:
    """Returns the most bytes that the process has held since it started, or since `begin`."""
    return _resident("VmHWM")


def _resident(name: str) -> int:
    """Returns a field of the process's status, in bytes."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024
