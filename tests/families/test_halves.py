"""Models of every family whose products are in scaled float16: how far from float32 they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtune
from jaxtune import tree
from jaxtune.training.step import compiled_step
from tests import pictured, reference
from tests.families.paligemma_cases import BOTH
from tests.families.test_paligemma_training import batch
from tests.families.test_parity import ONE_A_FAMILY, logits_and_gradients
from tests.training.test_step import padded, texts

STEPS = 30
HALVES = dict(precision="float16")


def distances(one, other) -> dict[str, float]:
    return {
        path: float(np.linalg.norm(one[path] - leaf) / np.linalg.norm(leaf))
        for path, leaf in other.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_A_FAMILY.values())
def test_float16_is_nearer_to_float32_than_bfloat16_is(pair, name):
    made = pair(name)
    tokens = reference.tokens(made.case, batch=2, seed=4)
    exact, half, brain = (
        logits_and_gradients(made.model.clone(**how), made.variables, tokens)
        for how in ({}, HALVES, dict(dtype=jnp.bfloat16))
    )
    ours, theirs = distances(half, exact), distances(brain, exact)
    assert 0 < ours["logits"] < theirs["logits"]
    # Three more bits of each factor are kept; of a single leaf, chance may have more of the error.
    worse = {path: (ours[path], theirs[path]) for path in ours if ours[path] > theirs[path] / 2}
    assert not worse


@pytest.mark.slow
@pytest.mark.parametrize("factor", [2.0**20, 2.0**-20])  # about 10^6, which scales exactly
def test_activations_and_gradients_of_any_size_neither_overflow_nor_vanish(pair, factor):
    made = pair("gemma3-seven-layers")
    tokens = reference.tokens(made.case, batch=2, seed=4)

    def scaled(path, leaf):
        # What attention and the MLP add to the residual, and with it all that norms then divide.
        return leaf * factor if path.endswith(("embed/w", "o/w", "down/w", "up/w")) else leaf

    variables = tree.map_with_path(scaled, made.variables)
    exact, half = (
        logits_and_gradients(made.model.clone(**how), variables, tokens) for how in ({}, HALVES)
    )
    assert all(np.isfinite(leaf).all() for leaf in half.values())
    far = {path: each for path, each in distances(half, exact).items() if each > 0.02}
    assert not far  # as far as without the factor, but for epsilon in norms


def followed(model, variables, batches) -> np.ndarray:
    variables = jaxtune.add_lora(variables, rank=4, alpha=8, key=jax.random.key(0))
    optimizer = jaxtune.optimizer("adamw", "cosine", lr=3e-3, total_steps=STEPS)
    state, losses = jaxtune.TrainState.create(variables, optimizer=optimizer), []
    for each in batches:
        state, metrics = jaxtune.train_step(model, optimizer, state, each)
        losses.append(float(metrics["loss"]))
    return np.array(losses)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma3-seven-layers", *BOTH])
def test_steps_follow_the_losses_of_float32(pair, seen, name):
    if name in BOTH:
        made, batches = seen(name), [batch(pictured.rows(seed)) for seed in range(STEPS)]
    else:
        made, batches = pair(name), [padded(list(texts(step))) for step in range(STEPS)]
    exact, half = (
        followed(made.model.clone(**how), made.variables, batches) for how in ({}, HALVES)
    )
    np.testing.assert_allclose(half, exact, rtol=1e-3)
    assert (half != exact).all()


@pytest.mark.slow
def test_every_product_is_in_float16(pair):
    made = pair("gemma3-seven-layers")
    model = made.model.clone(**HALVES)
    variables = jaxtune.add_lora(made.variables, rank=4, key=jax.random.key(0))
    optimizer = jaxtune.optimizer("adamw")
    state = jaxtune.TrainState.create(variables, optimizer=optimizer)
    rows = padded(list(texts(0)))
    lowered = compiled_step.lower(model, optimizer, state.replace(frozen=None), state.frozen, rows)
    products = [line for line in lowered.as_text().splitlines() if "dot_general" in line]
    # One sum over the width is left, of a token's own vector with its hidden state.
    wide = [line for line in products if "xf16>, tensor<" not in line]
    assert len(products) > 40 and len(wide) <= 1, wide
