"""What quantising costs, beside the same thing loaded and computed directly."""

import json
import re
import shutil
from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtune
from jaxtune import quant, tree
from jaxtune.checkpoint import load
from jaxtune.checkpoint.formats.safetensors import CheckpointError, Safetensors
from jaxtune.cli.inspect import quant_measure, quant_report
from jaxtune.cli.inspect.report import inspect
from jaxtune.cli.inspect.table import table
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.export.distance import SAMPLE, distance
from tests.cli.inspect.checkpoints import LINEAR, taken


@pytest.fixture
def own(base, tmp_path):
    """A copy of `base`, to spoil."""
    return shutil.copytree(base, tmp_path / "own")


@pytest.fixture
def bare(own):
    """One without a tokenizer, of which predictions are not compared."""
    for file in own.glob("tokenizer*"):
        file.unlink()
    return own


@pytest.fixture(scope="module")
def found(base):
    """What nf4-double does to the tiny checkpoint."""
    return inspect(base, quant=["nf4-double"]).quant


def rewrite(directory, change):
    """Write the weights again, each as `change` makes it of its name and array."""
    from safetensors.numpy import load_file, save_file

    file = directory / "model.safetensors"
    save_file({name: change(name, array) for name, array in load_file(file).items()}, file)


# Errors


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nf4-double", "int8"])
def test_errors_are_those_of_the_weights(bare, kind):
    _, plain = jaxtune.load(bare)
    _, rough = jaxtune.load(bare, quant=kind)
    exact, rough = (quant.by_path(each["params"]) for each in (plain, rough))
    [found] = inspect(bare, quant=[kind]).quant.measured
    everything = []
    for leaf in found.leaves:
        w = np.float64(exact[leaf.path])
        wrong = w - np.float64(quant.dequantize(rough[leaf.path]))
        everything.append((wrong, w))
        assert leaf.mean_absolute == pytest.approx(np.abs(wrong).mean(), rel=1e-6)
        assert leaf.relative == pytest.approx(np.linalg.norm(wrong) / np.linalg.norm(w), rel=1e-6)
        by_layer = [np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(wrong, w, strict=True)]
        np.testing.assert_allclose(leaf.layers, by_layer, rtol=1e-6)
        stored = taken(rough[leaf.path])
        assert leaf.bits == pytest.approx(8 * stored / w.size)
        assert leaf.to_keep == 2 * w.size - stored
    assert len(everything) == LINEAR
    wrong, w = (
        np.concatenate([each.ravel() for each in part]) for part in zip(*everything, strict=True)
    )
    assert found.mean_absolute == pytest.approx(np.abs(wrong).mean(), rel=1e-6)
    assert found.relative == pytest.approx(np.linalg.norm(wrong) / np.linalg.norm(w), rel=1e-6)


def test_nf4_error_on_normal_weights_is_the_published_one():
    w = np.float32(np.random.default_rng(0).standard_normal((1024, 1024)))
    found = quant_measure.error(w, quant.quantize(w, "nf4"))
    # 0.072798 is published; a million draws give it within 0.0001.
    assert found.mean_absolute == pytest.approx(0.072798, abs=0.0005)


@pytest.mark.slow
def test_each_weight_is_read_once_for_each_kind(bare, monkeypatch):
    """And is let go before the next one is read."""
    read, held = [], set()
    reading, release = Safetensors.read, Safetensors.release

    def counted(self, name):
        held.add(name)
        assert len(held) == 1
        read.append(name)
        return reading(self, name)

    def let_go(self, name):
        held.discard(name)
        release(self, name)

    monkeypatch.setattr(Safetensors, "read", counted)
    monkeypatch.setattr(Safetensors, "release", let_go)
    found = inspect(bare, quant=["nf4", "int8"]).quant
    layers = len(found.measured[0].leaves[0].layers)
    assert len(set(read)) == LINEAR * layers
    # Once to quantise it and once, from the same pages, to compare with it.
    assert len(read) == 2 * 2 * LINEAR * layers and not held


@pytest.mark.slow
def test_a_leaf_of_zeros(own):
    rewrite(own, lambda name, array: 0 * array if "down_proj" in name else array)
    found = inspect(own, quant=["nf4-double"])
    leaf = next(leaf for leaf in found.quant.measured[0].leaves if "down" in leaf.path)
    assert (leaf.mean_absolute, leaf.relative, leaf.kl) == (0, 0, 0)
    assert "layers/mlp/down/w" not in found.quant.measured[0].advice.keep
    json.dumps(asdict(found.quant), allow_nan=False)
    table(found)


@pytest.mark.slow
def test_a_model_that_predicts_nothing(own):
    rewrite(own, lambda _, array: 0 * array)
    found = inspect(own, quant=["nf4-double"])
    assert found.quant.measured[0].predictions.kl == 0
    assert found.quant.measured[0].advice is None
    assert "quantise every leaf: none alone changes predictions" in table(found)


@pytest.mark.slow
def test_weights_that_are_no_numbers(own):
    rewrite(own, lambda name, array: np.nan * array if "layers.1.mlp.up" in name else array)
    problem = r"layers\.1\.mlp\.up_proj\.weight: cannot quantise a weight with inf"
    with pytest.raises(CheckpointError, match=problem):
        inspect(own, quant=["nf4"])


# Predictions


def predicted(directory, rules, text=SAMPLE):
    """Logits of a text by a model that is loaded as anyone loads it."""
    tokenizer = Tokenizer.open(directory)
    model, variables = jaxtune.load(directory, quant=rules)
    ids = [tokenizer.bos, *tokenizer.encode(text)][: model.config.context]
    return jax.jit(model.apply)(variables, jnp.asarray([ids]))


# Float32 logits that are rounded otherwise move a divergence of 1e-4 by some thousandths of it.
NEAR = dict(rel=5e-3)


@pytest.mark.slow
def test_predictions_are_those_of_what_is_loaded(base, found):
    exact, [measured] = predicted(base, None), found.measured
    whole = distance(exact, predicted(base, "nf4-double"))
    assert whole.kl > 1e-4
    assert measured.predictions.kl == pytest.approx(whole.kl, **NEAR)
    assert measured.predictions.logits == pytest.approx(whole.logits, **NEAR)
    assert measured.predictions.agreement == pytest.approx(whole.agreement, abs=0.01)
    assert measured.predictions.positions == whole.positions == 256  # its context
    assert re.fullmatch(r"the first 256 of \d+ tokens of the sample text", found.text)


@pytest.mark.slow
def test_the_advice_loads_and_gives_what_it_says(base, found):
    [measured] = found.measured
    advice, leaves = measured.advice, {leaf.path: leaf for leaf in measured.leaves}
    exact = predicted(base, None)
    kl = distance(exact, predicted(base, advice.quant)).kl
    assert advice.predictions.kl == pytest.approx(kl, **NEAR)
    assert kl < measured.predictions.kl
    chosen = quant.kinds(load.describe(base).shapes, advice.quant)
    assert leaves.keys() - chosen.keys() == set(advice.keep)
    assert advice.bytes == sum(leaves[path].to_keep for path in advice.keep)
    best = max(leaves.values(), key=lambda leaf: leaf.kl / leaf.to_keep)
    assert advice.keep[0] == best.path
    alone = predicted(base, [(best.path, "nf4-double"), (".*", None)])
    assert best.kl == pytest.approx(distance(exact, alone).kl, **NEAR)


@pytest.mark.slow
def test_a_text_of_ones_own(base, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("sea and sand: ")
    quant_measure._apply.clear_cache()
    found = inspect(base, quant=["int4"], text=file)
    assert quant_measure._apply._cache_size() == 1  # one compilation serves every choice of leaves
    count = len(Tokenizer.open(base).encode("sea and sand: ")) + 1  # BOS
    assert found.quant.measured[0].predictions.positions == count
    assert found.quant.text == f"{count} tokens of the text"
    assert found.quant.text in " ".join(table(found).split())
    logits = (predicted(base, kind, "sea and sand: ") for kind in (None, "int4"))
    assert found.quant.measured[0].predictions.kl == pytest.approx(distance(*logits).kl, **NEAR)


@pytest.mark.slow
def test_predictions_are_left_out_without_a_tokenizer(bare):
    found = inspect(bare, quant=["nf4"])
    assert found.quant.measured[0].predictions is None and found.quant.measured[0].advice is None
    assert found.quant.text.startswith("not compared: ") and "no tokenizer" in found.quant.text
    text = table(found)
    assert "predictions not compared: " in text
    assert "KL alone" not in text and "suggestion" not in text


def test_predictions_are_left_out_where_the_embedding_lacks_tokens(base):
    described = load.describe(base)
    config = replace(described.model.config, vocabulary=64)
    small = replace(described, model=described.model.clone(config=config))
    ids, about = quant_measure.compared_tokens(small, None)
    assert not ids and "ids beyond the embedding's 64 rows" in about


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "text.txt is empty: expected text to compare predictions on"),
        (b" \n\t", "text.txt is empty"),
        (b"a", "the text is too short .*: expected 2 or more tokens, found 1"),
        (b"\xff\xfe", "text.txt is not UTF-8 text"),
    ],
)
def test_texts_that_are_none(base, tmp_path, content, message):
    (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        inspect(base, quant=["nf4"], text=tmp_path / "text.txt")


def test_kept_leaves_are_few_and_worth_it():
    """The best by bytes, and a second one that comes near it; whatever the rest."""

    def leaf(path, kl, to_keep):
        return quant_report.Leaf(path, 4.5, 0.1, 0.1, (0.1,), to_keep, kl)

    leaves = [leaf("a", 5.0, 100), leaf("b", 2.0, 10), leaf("c", 1.1, 10), leaf("d", 3.9, 20)]
    asked = []
    advice = quant_measure._advice(leaves, "nf4", asked.append)
    assert advice.keep == ("b", "d") and advice.bytes == 30
    assert asked == [["a", "c"]]
    assert advice.quant[:2] == (("b", None), ("d", None))
    assert quant_measure._advice(leaves[:3:2], "nf4", asked.append).keep == ("c",)
    found = tree.match(advice.quant[:2] + advice.quant[3:], ["b", "d", "embed/w"])
    assert found == {"b": None, "d": None, "embed/w": None}
