"""The picture encoder beside live transformers, whole and a block of queries after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from jaxtune import tree
from jaxtune.families import names
from jaxtune.families.paligemma import TOWER, siglip
from jaxtune.models import attention, blockwise, remat
from jaxtune.models.siglip import Siglip
from tests.pictured import TOWER as SIZES
from tests.reference import scramble


@pytest.fixture(scope="module")
def encoder():
    """Ours and theirs, with the same random weights."""
    torch.manual_seed(0)
    theirs = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SIZES)).eval()
    scramble(theirs)
    model = Siglip(siglip(SIZES))
    pictures = np.random.default_rng(0).uniform(-1, 1, (2, 59, 59, 3)).astype(np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), pictures)["params"]
    paths = {f"img/{path}": leaf.shape for path, leaf in tree.flatten(shapes).items()}
    found = {name: each.detach().numpy() for name, each in theirs.named_parameters()}
    leaves = {}
    for path, pieces in names.by_leaf(names.pieces(TOWER, paths)).items():
        layers = [p.ours(found[p.theirs.removeprefix("tower.")]) for p in pieces]
        whole = layers[0] if pieces[0].layer is None else np.stack(layers)
        leaves[path.removeprefix("img/")] = jnp.asarray(whole)
    return model, {"params": tree.unflatten(leaves)}, theirs, pictures


def test_patches_are_encoded_as_theirs(encoder):
    model, variables, theirs, pictures = encoder
    with torch.no_grad():
        pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2)
        want = theirs(pixels).last_hidden_state.numpy()
    got = np.asarray(model.apply(variables, pictures))
    # As logits: two float32 passes that add in different orders.
    assert np.abs(got - want).max() < 5e-5 * want.std()


def test_blocks_of_patches_go_through_the_mlp_to_the_same_end(encoder, monkeypatch):
    model, variables, _, pictures = encoder
    whole = model.apply(variables, pictures)
    monkeypatch.setattr(remat, "SHORTEST", 1)
    monkeypatch.setattr(remat, "BLOCK", 4 * 8)
    np.testing.assert_allclose(model.apply(variables, pictures), whole, atol=1e-5)


@pytest.mark.slow
def test_a_block_of_queries_at_a_time_gives_the_same(encoder, monkeypatch):
    """As for 4,096 patches, forward and backward."""
    model, variables, _, pictures = encoder

    def loss(variables):
        return jnp.square(model.apply(variables, pictures)).sum()

    whole = jax.value_and_grad(loss)(variables)
    monkeypatch.setattr(attention, "SHORT", 1)
    for name in ("SMALLEST", "LARGEST"):
        monkeypatch.setattr(blockwise, name, 4)
    blocks = jax.value_and_grad(loss)(variables)
    # Of the keys' biases the gradient is zero, and what comes of it rounding alone.
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(whole[1]))
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(blocks), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * largest)


@pytest.mark.slow
def test_in_bfloat16_norms_and_logits_are_computed_wider(encoder):
    model, variables, _, pictures = encoder
    exact = np.asarray(model.apply(variables, pictures))
    half = np.asarray(model.clone(dtype=jnp.bfloat16).apply(variables, pictures), np.float32)
    # Eight bits of a value's magnitude, through three layers.
    assert 0 < np.abs(half - exact).max() < 0.1 * np.abs(exact).max()
