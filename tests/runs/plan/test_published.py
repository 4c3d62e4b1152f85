"""The table of chips: complete, plausible, and the same in the docs."""

import re
from pathlib import Path

import pytest

from jaxtune.runs.plan.published import CHIPS, ROWS, chip_of, page

DOCS = Path(__file__).parents[3] / "docs"
chips = pytest.mark.parametrize("chip", ROWS, ids=lambda chip: chip.name)


def test_all_targets_are_there():
    tpus = ["v4", "v5e", "v5p", "v6e"]
    cards = ["t4", "l4", "rtx4050", "rtx4090", "rtx5090"]
    assert list(CHIPS) == [*tpus, *cards, "a100-40", "a100-80", "h100", "h200", "b200"]


@chips
def test_figures_are_plausible(chip):
    assert 5e9 < 0.9 * chip.memory < chip.visible < 1.01 * chip.memory
    assert chip.link < chip.bandwidth < chip.single / 10 < chip.half
    assert chip.single in (chip.half, pytest.approx(chip.half / 2, rel=0.02)) or chip.name == "t4"
    assert re.match(r"https://\S+\.(com|org)/", chip.source)


@chips
def test_what_jax_calls_a_device_finds_its_chip(chip):
    assert all(chip_of(kind) is chip for kind in chip.kinds)
    assert chip_of("cpu") is None


def test_the_table_in_the_docs_is_current():
    told = "put the output of python -m jaxtune.runs.plan.published into docs/devices.md"
    assert page() in (DOCS / "devices.md").read_text(), told


def test_every_chip_has_a_row_and_its_source():
    for chip in ROWS:
        assert page().count(f"| `{chip.name}` |") == 1
        assert f"- `{chip.name}`: {chip.source}" in page()
