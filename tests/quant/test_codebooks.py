"""The dynamic map and its look-up beside bitsandbytes."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from bitsandbytes import functional

from jaxtune.quant import codebooks

SIGNED = pytest.mark.parametrize("signed", [True, False])


def moments(signed: bool, peak: float = 1.0) -> np.ndarray:  # [2048, 64]
    """Values of many magnitudes, halves between codes and their neighbours, and nothing at all."""
    random = np.random.default_rng(0)
    values = random.normal(size=(2048, 64)) * 10.0 ** random.uniform(-8, 0, (2048, 64))
    table = codebooks.dynamic_map(signed)
    halfway = (table[1:] + table[:-1]) / 2
    for column, ties in enumerate([halfway, np.nextafter(halfway, 2), np.nextafter(halfway, -2)]):
        values[:256, column] = np.append(ties, 1)
    values[256:512, 5] = 0
    return (values if signed else np.abs(values)).astype(np.float32) * np.float32(peak)


@SIGNED
def test_the_maps_are_bitsandbytes(signed):
    theirs = functional.create_dynamic_map(signed=signed).numpy()
    np.testing.assert_array_equal(codebooks.dynamic_map(signed), theirs)


@SIGNED
def test_codes_are_those_of_the_cpu_kernel_where_it_rounds_once(signed):
    """On the values that it looks codes up for; it has no 0 among them."""
    grid = np.float32(-1) + np.arange(65536, dtype=np.float32) * 2 / np.float32(65535)
    grid = grid if signed else grid[grid > 0]
    values = np.ones((len(grid) // 127 + 1, 256), np.float32)  # every block has 1 as its peak
    values[:, :127].flat[: len(grid)] = grid
    theirs, _ = functional.quantize_blockwise(
        torch.tensor(values), functional.create_dynamic_map(signed=signed), blocksize=256
    )
    ours = codebooks.nearest(jnp.asarray(values), codebooks.dynamic_map(signed))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
@SIGNED
def test_a_tpu_s_way_gives_the_same_codes_and_values(signed):
    table, values = codebooks.dynamic_map(signed), jnp.asarray(moments(signed))
    halfway = (table[1:] + table[:-1]) / 2
    codes = codebooks._search(halfway, values)
    np.testing.assert_array_equal(codebooks._count(halfway, values), codes)
    np.testing.assert_array_equal(codebooks._sum(table, codes), codebooks._read(table, codes))
