"""Arrays of any bits, the comparison of two, and the memory that a mapped file takes."""

from pathlib import Path

import numpy as np


def random_array(shape, dtype, seed=0):
    """Any bit pattern at all, except that a bool is 0 or 1."""
    dtype = np.dtype(dtype)
    count = int(np.prod(shape)) * dtype.itemsize
    drawn = np.random.default_rng(seed).integers(
        0, 2 if dtype.kind == "b" else 256, count, np.uint8
    )
    return drawn.view(dtype).reshape(shape)


def assert_same(found, expected):
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()


def resident(path):
    """How many KiB of a mapped file count as memory of this process."""
    smaps = Path("/proc/self/smaps").read_text().splitlines()
    at = next(row for row, line in enumerate(smaps) if line.endswith(str(path)))
    return next(int(line.split()[1]) for line in smaps[at:] if line.startswith("Rss:"))
