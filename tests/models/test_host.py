"""Embeddings on the host: which ones may be there, and that losses are those of one on devices."""

import functools

import jax
import numpy as np
import pytest

import jaxtune
from jaxtune import sharding, tree
from jaxtune.models import host, tables
from jaxtune.training.optim import optimizer
from jaxtune.training.population import Population, population_losses, population_step
from jaxtune.training.step import TrainState, eval_step, train_step
from tests.training.test_step import padded, stacked, texts

PATH = "params/embed/w"
CLOSE = 1e-6  # in two programs, XLA may add in another order


@functools.cache
def batch(step: int):
    rows = list(texts(step))
    return stacked(padded(rows[:2]), padded(rows[2:]))


def test_an_extract_has_the_vectors_of_its_tokens_alone():
    table = np.random.default_rng(0).standard_normal((50, 8), np.float32)
    tokens = np.array([[7, 3, 7], [49, 0, 3]])
    extract = tables.Extract.of(table, tokens)
    assert extract.vectors.shape == (6, 8)
    np.testing.assert_array_equal(tables.rows(extract, tokens, np.float32), table[tokens])
    for other in (5, 50, -60):  # not in the batch, and in no table
        assert np.isnan(tables.rows(extract, np.array([other]), np.float32)).all()
    assert tables.Extract.of(table, np.arange(50).repeat(3)).vectors.shape == table.shape
    shapes = tables.Extract.of(table, jax.ShapeDtypeStruct(tokens.shape, np.int32))
    assert jax.tree.map(np.shape, extract) == jax.tree.map(lambda leaf: leaf.shape, shapes)


def test_only_an_embedding_beside_a_head_moves(pair):
    variables = pair("llama-linear").variables
    moved = host.moved(variables)
    was, now = tree.flatten(variables), tree.flatten(moved)
    assert isinstance(now[PATH], np.ndarray) and host.stays(moved)
    assert [path for path in now if now[path] is not was[path]] == [PATH]
    back = tree.flatten(host.returned(moved))[PATH]
    np.testing.assert_array_equal(back, was[PATH])
    assert back.sharding == was[PATH].sharding
    tied = pair("llama-mqa-tied-biased").variables
    assert host.moved(tied) is tied and not host.stays(tied)
    assert host.extracted(tied, batch(0).tokens) is tied


def test_shapes_move_like_arrays(pair):
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    params = tree.flatten(pair("llama-linear").variables)
    where = sharding.shardings({path: leaf.shape for path, leaf in params.items()}, mesh)
    shapes = tree.unflatten(sharding.described(params, where))
    moved = host.moved(shapes)
    size = sharding.total_bytes(tree.flatten(shapes)[PATH])
    assert sharding.host_bytes(moved) == size
    assert sharding.device_bytes(moved) == sharding.device_bytes(shapes) - size
    assert sharding.described(moved) == moved
    assert host.returned(moved) == shapes


@pytest.mark.slow
def test_steps_have_the_same_losses(pair):
    made = pair("llama-linear")
    adapted = jaxtune.add_lora(made.variables, 4, 8.0, key=jax.random.key(0), dropout=0.1)
    optimiser = optimizer("adamw", lr=1e-2)

    def trained(variables):
        state, losses = TrainState.create(variables, optimizer=optimiser), []
        for step in range(3):
            state, metrics = train_step(made.model, optimiser, state, batch(step))
            held = jax.tree.map(lambda leaf: leaf[0], batch(step))
            losses += [metrics["loss"], eval_step(made.model, state.variables, held)[0]]
        return np.array(losses), state

    losses, _ = trained(adapted)
    apart, state = trained(host.moved(adapted))
    np.testing.assert_allclose(apart, losses, rtol=CLOSE)
    assert host.stays(state.frozen)


@pytest.mark.slow
def test_members_share_an_embedding_on_the_host(pair):
    made, optimiser = pair("llama-linear"), optimizer("adamw", lr=1e-2)

    def states(move):
        for seed in range(2):
            key = jax.random.key(seed)
            adapted = jaxtune.add_lora(made.variables, 2, 4.0, key=key)
            yield TrainState.create(move(adapted), optimizer=optimiser, rng=key)

    found = []
    for move in (lambda variables: variables, host.moved):
        population = Population.of(list(states(move)))
        held = jax.tree.map(lambda leaf: leaf[0], batch(0))
        losses = population_losses(made.model, population, held)[0]
        population, metrics = population_step(made.model, optimiser, population, batch(0))
        found.append([losses, metrics["loss"]])
    assert host.stays(population.shared)
    np.testing.assert_allclose(*found, rtol=CLOSE)


def test_inside_of_a_program_it_is_taken_whole(pair):
    variables = host.moved(pair("llama-linear").variables)
    traced = []
    jax.eval_shape(lambda tokens: traced.append(host.extracted(variables, tokens)), batch(0).tokens)
    assert traced[0] is variables
