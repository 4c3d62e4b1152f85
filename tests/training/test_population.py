"""What members of a population share, and how they leave it.

`tests/runs/test_together.py` has them beside the same runs alone.
"""

import re

import jax
import numpy as np
import pytest

import jaxtune
from jaxtune.display.errors import UserError
from jaxtune.training import population as module
from jaxtune.training.optim import optimizer
from jaxtune.training.population import Population, population_step
from jaxtune.training.step import TrainState, train_step
from tests.training.test_step import padded, texts

# Rank, alpha, dropout, seed, and hyperparameters of each member.
MEMBERS = (
    (4, 8.0, 0.0, 0, dict(lr=1e-3)),
    (2, 16.0, 0.3, 1, dict(lr=5e-3, weight_decay=0.1)),
    (1, 4.0, 0.1, 1, dict(lr=2e-2, clip_norm=0.5, b1=0.8)),
    (4, 32.0, 0.1, 2, dict(lr=3e-3, warmup_steps=3.0)),
)


def states(variables, made, members=MEMBERS) -> list[TrainState]:
    """The members' states, made as if each trained alone, from the same variables."""
    found = []
    for rank, alpha, dropout, seed, hyper in members:
        key = jax.random.key(seed)
        adapted = jaxtune.add_lora(variables, rank, alpha, key=key, dropout=dropout)
        found.append(TrainState.create(adapted, optimizer=made, hyper=hyper, rng=key))
    return found


def rows(step: int):
    return padded(list(texts(step)))


@pytest.mark.slow
def test_a_frozen_weight_is_dequantised_once_for_all_members(base):
    model, variables = jaxtune.load(base, "float32", "nf4")
    made = optimizer("sgd")
    population = Population.of(states(variables, made, MEMBERS[:3]))
    lowered = module.compiled_population_step.lower(
        model, made, population.states, population.shared, rows(0), False
    )
    shapes = set(re.findall(r"tensor<([\dx]+)xf32>", lowered.as_text()))
    assert "32x48" in shapes  # gate and up, dequantised
    assert not shapes & {"3x32x48", "3x48x32", "3x512x32", "3x32x512"}


@pytest.mark.slow
def test_members_leave_and_the_others_go_on(base):
    model, variables = jaxtune.load(base, "float32")
    made = optimizer("adamw")
    population = Population.of(states(variables, made))
    population, _ = population_step(model, made, population, rows(0))
    fewer = population.without([0, 2])
    assert len(fewer) == 2 and fewer.ranks == (2, 4)
    for index, was in enumerate((1, 3)):
        jax.tree.map(
            np.testing.assert_array_equal,
            jax.device_get(fewer.member(index).trainable),
            jax.device_get(population.member(was).trainable),
        )


@pytest.mark.slow
def test_members_may_have_batches_of_their_own(base):
    model, variables = jaxtune.load(base, "float32")
    made = optimizer("adamw")
    alone, others = (states(variables, made, MEMBERS[1:3]) for _ in range(2))
    population = Population.of(others)
    batches = [rows(step) for step in range(len(alone))]
    together = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
    _, found = population_step(model, made, population, together, own=True)
    expected = [
        float(train_step(model, made, state, batch)[1]["loss"])
        for state, batch in zip(alone, batches, strict=True)
    ]
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-5)


def test_states_that_cannot_be_stacked_are_refused(base):
    _, variables = jaxtune.load(base, "float32")
    _, others = jaxtune.load(base, "float32")
    made = optimizer("adamw")
    one, other = (states(each, made, MEMBERS[:1]) for each in (variables, others))
    with pytest.raises(UserError, match="share their frozen weights, but params/"):
        Population.of(one + other)
    narrow = states(variables, optimizer("adafactor"), MEMBERS[:2])
    with pytest.raises(UserError, match=r"members of ranks 2 and 4 cannot be stacked: .*/a is not"):
        Population.of(narrow)
    with pytest.raises(UserError, match="member 1 of a population does not match member 0"):
        Population.of(one + states(variables, optimizer("sgd"), MEMBERS[:1]))
