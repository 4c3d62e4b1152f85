"""Rates, memory limits and compiler descriptions of chips."""

import re

import pytest

from jaxtune.display.errors import UserError
from jaxtune.runs.plan.chips import CONTEXT, FRACTIONS, GiB, Gpu, Tpu, memory_fraction
from jaxtune.runs.plan.published import CHIPS

GPUS = [chip for chip in CHIPS.values() if isinstance(chip, Gpu)]


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    """The environment without a memory fraction."""
    for name in FRACTIONS:
        monkeypatch.delenv(name, raising=False)


def test_the_bound_on_time_is_the_longest_of_arithmetic_memory_and_links():
    chip = CHIPS["v5e"]
    assert chip.seconds(197e12, 0, 0) == 1
    assert chip.seconds(197e12, 2 * 819e9, 0) == 2
    assert chip.seconds(197e12, 2 * 819e9, 3 * 200e9) == 3


def test_the_rate_depends_on_the_dtype():
    a100, t4 = CHIPS["a100-80"], CHIPS["t4"]
    assert a100.seconds(312e12, 0, 0, "bfloat16") == a100.seconds(312e12, 0, 0, "float16") == 1
    assert a100.seconds(312e12, 0, 0, "float32") == 2
    assert t4.seconds(65e12, 0, 0, "float16") == 1
    assert t4.peak("bfloat16") == t4.peak("float32") == 8.1e12  # it has no bfloat16


def test_a_program_may_take_all_that_libtpu_offers():
    assert CHIPS["v5e"].limit() == int(15.75 * GiB)
    assert all(c.limit() == c.visible for c in CHIPS.values() if isinstance(c, Tpu))


@pytest.mark.parametrize("name", FRACTIONS)
def test_a_program_may_take_the_fraction_of_a_gpu_that_jax_takes(monkeypatch, name):
    chip = CHIPS["t4"]
    assert chip.limit() == int(0.75 * chip.visible)
    monkeypatch.setenv(name, ".9")
    assert chip.limit() == int(0.9 * chip.visible)
    monkeypatch.setenv(name, "0.99")
    assert chip.limit() == chip.visible - CONTEXT


@pytest.mark.parametrize("found", ["much", "0", "-0.5", "nan"])
def test_a_fraction_that_is_none_is_refused(monkeypatch, found):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", found)
    with pytest.raises(UserError, match=f"MEM_FRACTION is '{found}'; expected the fraction"):
        memory_fraction()


def parsed(text: str) -> dict:
    """The fields of a protocol buffer in text format, nested messages as dictionaries."""
    tokens = iter(re.findall(r'"[^"]*"|[\w.+-]+|[{}:]', text))

    def message():
        found = {}
        for name in tokens:
            if name == "}":
                return found
            found[name] = message() if next(tokens) == "{" else next(tokens).strip('"')
        return found

    return message()


@pytest.mark.parametrize("chip", GPUS, ids=lambda chip: chip.name)
def test_the_description_of_a_gpu_is_whole(chip):
    found = parsed(chip.proto())
    info = found["gpu_device_info"]
    capability = info["cuda_compute_capability"]
    assert capability["major"] in ("7", "8", "9", "10", "12")
    assert int(info["device_memory_size"]) == chip.visible
    assert int(info["memory_bandwidth"]) == chip.bandwidth
    assert int(info["core_count"]) == chip.cores
    assert int(info["shared_memory_per_block_optin"]) <= int(info["shared_memory_per_core"])
    assert found["device_description_str"] == chip.kinds[0]


@pytest.mark.parametrize("chip", GPUS, ids=lambda chip: chip.name)
def test_the_published_rate_is_that_of_the_cores_and_their_clock(chip):
    """16-bit operations per core and cycle, with the clock that matmuls run at."""
    operations = {(7, 5): 1024, (8, 0): 2048, (8, 9): 512, (9, 0): 4096, (10, 0): 8192}
    kind = (chip.architecture.major, chip.architecture.minor)
    if chip.name == "l4":
        operations[8, 9] = 1024  # the L4 accumulates in float32 at the full rate
    expected = operations.get(kind, 512) * chip.cores * chip.clock * 1e9
    assert chip.half == pytest.approx(expected, rel=0.1)  # H100 and B200 slow down in matmuls
