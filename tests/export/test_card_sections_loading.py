"""The lines of a card that load a model do load what they stand beside, in each library."""

import warnings
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

import jaxtune
from jaxtune import tree
from jaxtune.adapters.lora import Lora
from jaxtune.export import card
from tests import pictured, reference
from tests.export.cards import config

# Between frameworks in float32, over the logits' deviation: what tests/checkpoint bounds, too.
NEAR = 5e-5

TOKENS = np.asarray([[2, 10, 20, 30, 40]], np.int32)


def adapted(directory: Path):
    """A checkpoint loaded, with adapters that matter."""
    model, variables = jaxtune.load(directory)
    variables = jaxtune.add_lora(variables, rank=2, alpha=4.0, key=jax.random.key(0))
    leaves = tree.flatten(variables["lora"], is_leaf=lambda leaf: isinstance(leaf, Lora))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    changed = {
        path: leaf.replace(b=0.3 * jax.random.normal(key, leaf.b.shape))
        for key, (path, leaf) in zip(keys, leaves.items(), strict=True)
    }
    return model, {**variables, "lora": tree.unflatten(changed)}


@pytest.fixture(scope="module")
def tuned(base):
    return adapted(base)


def blocks(file: Path) -> dict[str, str]:
    """The lines to load it, by library."""
    parts = file.read_text().split("```python\n")
    return {
        before.rsplit("With ", 1)[1].split(":")[0]: after.split("```")[0]
        for before, after in pairwise(parts)
    }


def run(code: str) -> dict:
    """What some lines make; libraries warn where a checkpoint lacks what they look for."""
    assert len(code.splitlines()) <= 3
    space = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(code, space)
    assert not [str(each.message) for each in caught if "keys" in str(each.message)]
    return space


def near(found, want) -> None:
    found, want = (np.asarray(each, np.float32) for each in (found, want))
    assert np.abs(found - want).max() / want.std() < NEAR


def settled(monkeypatch, directory: Path, base: Path) -> None:
    """Work where the card's names are those of files."""
    monkeypatch.chdir(directory)
    Path(base.name).symlink_to(base)


@pytest.mark.parametrize("pictures", [False, True])
@pytest.mark.slow
def test_lines_that_load_an_adapter(tuned, base, pictures, tmp_path, monkeypatch):
    if pictures:
        base = pictured.write_base(tmp_path / "seeing", pictured.TOKEN)
        tuned = adapted(base)
    model, variables = tuned
    (tmp_path / "out").mkdir()
    jaxtune.save_adapter(variables, tmp_path / "out" / "adapter", base)
    file = card.write(tmp_path / "out" / "adapter", tmp_path, config(base), kind="adapter")
    code = blocks(file)
    assert [*code] == ["PEFT", "jaxtune"]
    settled(monkeypatch, tmp_path / "out", base)
    want = jax.jit(model.apply)(variables, TOKENS)
    assert np.abs(want - jax.jit(model.apply)({"params": variables["params"]}, TOKENS)).max() > 0.1
    ours = run(code["jaxtune"])
    near(jax.jit(ours["model"].apply)(ours["variables"], TOKENS), want)
    live = run(code["PEFT"])["model"].eval()
    if pictures:
        given = pictured.rows()
        seen = dict(valid=given.valid, causal=given.causal)
        want = jax.jit(model.apply)(variables, given.tokens, given.images, **seen)[given.valid]
        with torch.no_grad():
            near(live(**pictured.inputs(given)).logits.numpy()[given.valid], want)
    else:
        near(reference.logits(live, TOKENS), want)


@pytest.mark.slow
def test_lines_that_load_a_merged_model(tuned, base, tmp_path, monkeypatch):
    model, variables = tuned
    jaxtune.save_merged(model, variables, tmp_path / "merged", dtype="float32")
    code = blocks(card.write(tmp_path / "merged", tmp_path, config(base), kind="merged"))
    assert [*code] == ["transformers", "jaxtune"]
    monkeypatch.chdir(tmp_path)
    want = jax.jit(model.apply)(variables, TOKENS)
    ours, live = run(code["jaxtune"]), run(code["transformers"])
    near(jax.jit(ours["model"].apply)(ours["variables"], TOKENS), want)
    near(reference.logits(live["model"].eval(), TOKENS), want)
    assert live["tokenizer"].decode([2]) == "<bos>"


@pytest.mark.slow
def test_lines_that_load_an_npz(tmp_path, monkeypatch):
    pictured.make("paligemma", tmp_path / "base")
    model, variables = jaxtune.load(tmp_path / "base")
    jaxtune.save_merged(model, variables, tmp_path / "merged.npz", dtype="float32")
    written = config(tmp_path / "base", trainable={"kind": "full"})
    file = card.write(tmp_path / "merged.npz", tmp_path, written, kind="npz")
    assert file == tmp_path / "merged.md"
    assert "library_name" not in file.read_text()
    code = blocks(file)
    assert [*code] == ["jaxtune"]
    monkeypatch.chdir(tmp_path)
    ours = run(code["jaxtune"])
    near(
        jax.jit(ours["model"].apply)(ours["variables"], TOKENS),
        jax.jit(model.apply)(variables, TOKENS),
    )
    # An adapter that stands on an .npz is nothing for PEFT.
    on_it = config(tmp_path / "merged.npz")
    (tmp_path / "adapter").mkdir()
    file = card.write(tmp_path / "adapter", tmp_path, on_it, kind="adapter")
    assert [*blocks(file)] == ["jaxtune"]
