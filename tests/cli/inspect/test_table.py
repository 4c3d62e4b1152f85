"""The report as text and as JSON."""

import dataclasses
import json
import math

import pytest

from jaxtune.cli.inspect.report import inspect
from jaxtune.cli.inspect.table import table
from tests.cli.inspect.checkpoints import bpe


@pytest.mark.parametrize("axes", [None, {"fsdp": 5, "tensor": 2}])
@pytest.mark.parametrize("name", ["gemma3-tower", "llama-llama3", "phi4-mini-longrope-long"])
def test_table(made, name, axes):
    report = inspect(made(name)[0], axes)
    text = table(report)
    lines = text.splitlines()
    assert max(map(len, lines[1:])) <= 100
    for leaf in report.leaves:
        line = next(line for line in lines if line.startswith(f"{leaf.path} "))
        assert f" {leaf.parameters:,} " in line
        assert " × ".join(map(str, leaf.shape)) in line
    total = next(line for line in lines if line.startswith("total "))
    assert f"{report.totals['parameters']:,}" in total
    assert "stored as" not in text
    assert all(leaf.stored_as in table(report, names=True) for leaf in report.leaves)


def test_table_of_a_mesh(made):
    lines = table(inspect(made("llama-llama3")[0], {"fsdp": 8, "tensor": 2})).splitlines()
    query = next(line for line in lines if line.startswith("layers/attn/q/w"))
    assert query.split()[-5:] == ["-,", "fsdp,", "tensor", "1.69", "KiB"]
    scale = next(line for line in lines if line.startswith("norm/scale"))
    assert scale.split()[-3:] == ["replicated", "192", "B"]


def test_table_shows_the_tokenizer(llama):
    bpe(llama)
    text = table(inspect(llama))
    assert "BPE in tokenizer.json, 7 tokens" in text
    assert "bos <s> 1 (added to every text), eos </s> 2, pad <pad> 0, unk <unk> 3" in text


def test_json_says_the_same(made):
    plain = dataclasses.asdict(inspect(made("phi3-window")[0], {"fsdp": 2}))
    again = json.loads(json.dumps(plain))
    assert again["totals"] == plain["totals"]
    sizes = [math.prod(leaf["shape"]) for leaf in again["leaves"]]
    assert sum(sizes) == again["totals"]["parameters"]
