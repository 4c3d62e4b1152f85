"""Objectives: what the step makes of them, and log-probabilities beside those of all logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

import jaxtune
from jaxtune import tree
from jaxtune.display.errors import UserError
from jaxtune.training import loss
from jaxtune.training.objectives import CROSS_ENTROPY, Forward, as_objective, log_probs
from jaxtune.training.optim import optimizer
from jaxtune.training.population import Population, population_step
from jaxtune.training.step import TrainState, compiled_step, eval_step, train_step
from tests.training.test_step import padded, texts


@struct.dataclass
class Scaled:
    """Cross-entropy from log-probabilities, times a factor that is an array, with a metric."""

    factor: jax.Array
    power: int = struct.field(pytree_node=False, default=1)

    def weight(self, batch):
        return batch.weights.sum()

    def __call__(self, forward, batch):
        found = -forward.log_probs(batch) * batch.weights
        return self.factor**self.power * found.sum(), {"greatest": (found**2).sum()}


def states(base, count=1):
    model, variables = jaxtune.load(base, "float32")
    made = optimizer("adamw", lr=1e-2)
    found = []
    for seed in range(count):
        adapted = jaxtune.add_lora(variables, rank=2, key=jax.random.key(seed))
        found.append(TrainState.create(adapted, optimizer=made))
    return model, made, found


def logits_of(model, variables, batch):
    found = jax.jit(model.apply)(variables, batch.tokens, valid=batch.valid)
    return jnp.take_along_axis(found, jnp.asarray(batch.where)[..., None], axis=1)


@pytest.mark.slow
def test_log_probabilities_are_those_of_all_logits(base, monkeypatch):
    model, variables = jaxtune.load(base, "float32")
    batch = padded(list(texts(0)))
    monkeypatch.setattr(loss, "CHUNK_BYTES", 4 * 512 * 5)  # five positions at a time
    sequences, tokens = log_probs(model, variables, batch)
    whole = jax.nn.log_softmax(logits_of(model, variables, batch))
    want = jnp.take_along_axis(whole, jnp.asarray(batch.targets)[..., None], -1)[..., 0]
    want = np.where(batch.weights > 0, want, 0)
    np.testing.assert_allclose(tokens, want, atol=2e-5)
    np.testing.assert_allclose(sequences, want.sum(-1), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_gradients_of_log_probabilities(pair, tied):
    """Of hidden states and of a head that trains, beside those of all logits."""
    made = pair("gemma2-windows" if tied else "llama-llama3")
    batch = padded(list(texts(0)))
    power = jnp.asarray(np.random.default_rng(0).normal(size=batch.targets.shape), jnp.float32)

    def ours(params):
        forward = Forward(made.model, {"params": params}, {})
        return jnp.sum(jnp.tanh(forward.log_probs(batch)) * power)

    def plain(params):
        whole = jax.nn.log_softmax(logits_of(made.model, {"params": params}, batch))
        found = jnp.take_along_axis(whole, jnp.asarray(batch.targets)[..., None], -1)[..., 0]
        return jnp.sum(jnp.tanh(found) * power)

    got, want = (jax.jit(jax.grad(each))(made.variables["params"]) for each in (ours, plain))
    for path, leaf in tree.flatten(want).items():
        scale = float(jnp.abs(leaf).max()) + 1e-6
        np.testing.assert_allclose(tree.flatten(got)[path], leaf, atol=1e-4 * scale, err_msg=path)


@pytest.mark.slow
def test_cross_entropy_from_log_probabilities_trains_as_the_fused_one(base):
    model, made, (one,) = states(base)
    _, _, (other,) = states(base)
    for step in range(3):
        batch = padded(list(texts(step)))
        one, first = train_step(model, made, one, batch)
        other, second = train_step(model, made, other, batch, objective=Scaled(jnp.float32(1.0)))
        assert float(first["loss"]) == pytest.approx(float(second["loss"]), rel=1e-6)
        assert float(second["greatest"]) > 0 and "greatest" not in first


@pytest.mark.slow
def test_micro_batches_are_one_batch_for_any_objective(base):
    model, made, (one,) = states(base)
    _, _, (other,) = states(base)
    whole = padded(list(texts(0)))
    halves = jax.tree.map(lambda leaf: leaf.reshape(2, -1, *leaf.shape[1:]), whole)
    objective = Scaled(jnp.float32(2.0), power=2)
    one, first = train_step(model, made, one, whole, objective=objective)
    other, second = train_step(model, made, other, halves, objective=objective)
    for name in first:
        assert float(first[name]) == pytest.approx(float(second[name]), rel=1e-5), name


@pytest.mark.slow
def test_arrays_of_an_objective_are_arguments(base):
    model, made, (state,) = states(base)
    batch = padded(list(texts(0)))
    before = compiled_step._cache_size()
    losses = []
    for factor in (1.0, 3.0):
        state, metrics = train_step(
            model, made, state, batch, objective=Scaled(jnp.float32(factor), power=3)
        )
        losses.append(float(metrics["loss"]))
    assert compiled_step._cache_size() == before + 1
    assert losses[1] > 20 * losses[0]


@pytest.mark.slow
def test_members_of_a_population_have_the_objective_too(base):
    model, made, found = states(base, 2)
    _, _, again = states(base, 2)
    batch, objective = padded(list(texts(0))), Scaled(jnp.float32(0.5))
    _, metrics = population_step(model, made, Population.of(found), batch, objective=objective)
    for member, state in enumerate(again):
        _, alone = train_step(model, made, state, batch, objective=objective)
        for name in ("loss", "greatest"):
            assert float(metrics[name][member]) == pytest.approx(float(alone[name]), rel=1e-5)


@pytest.mark.slow
def test_a_function_is_an_objective(base):
    model, made, (state,) = states(base)
    batch = padded(list(texts(0)))

    def doubled(forward, batch):
        return 2 * forward.cross_entropy(batch)

    loss_sum, weight = eval_step(model, state.variables, batch)
    twice, same = eval_step(model, state.variables, batch, objective=doubled)
    assert float(twice) == pytest.approx(2 * float(loss_sum)) and float(weight) == float(same)
    _, metrics = train_step(model, made, state, batch, objective=doubled)
    assert float(metrics["loss"]) == pytest.approx(2 * float(loss_sum / weight), rel=1e-6)


@pytest.mark.slow
def test_the_base_is_the_model_without_adapters(base):
    model, _, (state,) = states(base)
    batch = padded(list(texts(0)))
    moved = jax.tree.map(lambda leaf: leaf + 0.1, state.trainable)
    forward = Forward(model, moved, state.frozen)
    plain = {"params": state.variables["params"]}
    want = log_probs(model, plain, batch)[1]
    got = jnp.where(batch.weights > 0, forward.base.log_probs(batch), 0)
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert float(jnp.abs(forward.log_probs(batch) - forward.base.log_probs(batch)).max()) > 0.01


@pytest.mark.parametrize("given", ["margin", 3, object(), jnp.ones(3)])
def test_what_is_no_objective_is_refused(given):
    with pytest.raises(
        UserError, match=r"objective: found .*; expected a function of \(forward, b"
    ):
        as_objective(given)
    assert as_objective(CROSS_ENTROPY) is CROSS_ENTROPY


@pytest.mark.parametrize(
    "compute, problem",
    [
        (lambda forward, batch: forward.log_probs(batch), r"loss is an array of shape \(\d"),
        (lambda forward, batch: 3.0, "loss is a float; expected a sum over the batch"),
        (lambda forward, batch: (forward.cross_entropy(batch), 3), "metrics is a int"),
        (lambda f, batch: (f.cross_entropy(batch), {"lr": 1}), "a metric may not be called 'lr'"),
        (lambda f, batch: (f.cross_entropy(batch), {"a": batch.weights}), "a is an array of shape"),
    ],
)
def test_what_an_objective_must_compute(base, compute, problem):
    model, _, (state,) = states(base)
    with pytest.raises(UserError, match=f"objective: {problem}"):
        eval_step(model, state.variables, padded(list(texts(0))), objective=compute)
