"""What quantising saves, beside the same thing loaded and counted directly."""

import json
import math

import pytest

import jaxtune
from jaxtune import families, quant
from jaxtune.checkpoint import load
from jaxtune.checkpoint.formats.safetensors import Safetensors
from jaxtune.cli.inspect import quant_report
from jaxtune.cli.inspect.report import inspect
from jaxtune.cli.inspect.table import table
from tests.cli.inspect.checkpoints import LINEAR, taken
from tests.marks import slow_after

GIB = 2**30
LLAMA_8B = dict(
    model_type="llama",
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=131072,
    rms_norm_eps=1e-5,
    rope_theta=500000.0,
    hidden_act="silu",
    tie_word_embeddings=False,
)


def test_an_8b_model_takes_what_is_known(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    shapes = load.leaf_shapes(families.read_config(tmp_path)[2])
    assert sum(map(math.prod, shapes.values())) == 8_030_261_248
    found = {size.kind: size for size in quant_report.sizes(shapes)}
    assert found["float32"].bytes == 4 * 8_030_261_248
    assert found["bfloat16"].bytes == 2 * 8_030_261_248
    # As published: 30, 8 and 5 GB.
    assert found["float32"].bytes / GIB == pytest.approx(30, abs=0.5)
    assert found["int8"].bytes / GIB == pytest.approx(8, abs=0.5)
    assert found["nf4-double"].bytes / GIB == pytest.approx(5, abs=0.5)
    # Of 64 weights, 256 bits are codes and 32 or 8 the scale; each 256 scales have a peak.
    assert found["nf4"].linear_bits == found["int4"].linear_bits == 4.5
    assert found["nf4-double"].linear_bits == pytest.approx(4 + 8 / 64 + 32 / 64 / 256, abs=1e-5)


@pytest.mark.parametrize("kind", slow_after(1, reversed(quant.MADE)))
def test_sizes_are_those_of_what_is_loaded(base, kind):
    _, variables = jaxtune.load(base, "bfloat16", quant=kind)
    leaves = quant.by_path(variables["params"])
    found = next(size for size in inspect(base, quant=[]).quant.sizes if size.kind == kind)

    assert found.bytes == taken(leaves)
    linear = [leaf for leaf in leaves.values() if quant.is_quantized(leaf)]
    assert len(linear) == LINEAR
    assert found.linear_bytes == taken(linear)
    assert found.linear_bits == pytest.approx(
        8 * taken(linear) / sum(math.prod(leaf.shape) for leaf in linear)
    )
    assert found.bits == pytest.approx(
        8 * taken(leaves) / sum(math.prod(leaf.shape) for leaf in leaves.values())
    )


def test_sizes_need_no_weights(base, monkeypatch):
    def fail(*_):
        raise AssertionError("a weight was read")

    monkeypatch.setattr(Safetensors, "read", fail)
    found = inspect(base, quant=[])
    assert found.quant.measured == ()
    lines = table(found).splitlines()
    row = next(line for line in lines if line.startswith("nf4-double "))
    assert f"{found.quant.sizes[-1].bits:.2f}" == row.split()[-1]
    assert f"{found.quant.linear:,} of {found.quant.parameters:,} parameters" in table(found)
    assert max(map(len, lines)) <= 100


def test_what_is_asked_for_must_exist(base, tmp_path):
    with pytest.raises(ValueError, match="'nf5': expected one of nf4, nf4-double, int4, int8"):
        inspect(base, quant=["nf4", "nf5"])
    with pytest.raises(ValueError, match="used to measure kinds: name one, as in --quant=nf4"):
        inspect(base, quant=[], text="text.txt")
    with pytest.raises(FileNotFoundError):
        inspect(base, quant=["nf4"], text=tmp_path / "none")
