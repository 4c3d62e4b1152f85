"""Blocks of the tokens of a long row: the same numbers, with the activations of one at a time."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

import jaxtune
from jaxtune import sharding
from jaxtune.models import remat

ROWS, TOKENS = 2, 256


def graded(model, variables, tokens):
    """The traced loss of a step, with its gradients for the adapters."""

    def loss(lora):
        return jax.nn.logsumexp(model.apply(variables | {"lora": lora}, tokens), -1).mean()

    return jax.jit(jax.value_and_grad(loss)).trace(variables["lora"])


@pytest.mark.slow
@pytest.mark.parametrize("quant", [None, "nf4"])
@pytest.mark.parametrize("name", ["gemma3-seven-layers", "qwen2-yarn"])
def test_losses_and_gradients_are_those_of_all_tokens_at_once(pair, name, quant, monkeypatch):
    model, variables = jaxtune.load(pair(name).directory, quant=quant)
    variables = jaxtune.add_lora(variables, 4, key=jax.random.key(0))
    lora = jax.tree.map(lambda x: x + 0.01 if x.ndim > 2 else x, variables["lora"])
    variables = variables | {"lora": lora}
    tokens = np.random.default_rng(0).integers(3, 90, (ROWS, TOKENS), np.int32)
    found = []
    wide = f"[{ROWS * TOKENS},{model.config.hidden}]"  # activations of the MLP for all tokens
    monkeypatch.setattr(remat, "SHORTEST", 1)
    for block in (ROWS * TOKENS * 4, ROWS * TOKENS):
        monkeypatch.setattr(remat, "BLOCK", block)
        traced = graded(model, variables, tokens)
        assert (wide in str(traced.jaxpr)) == (block > ROWS * TOKENS)
        found.append(traced.lower().compile()(lora))
    (one, gradients), (other, others) = found
    assert float(other) == pytest.approx(float(one), rel=1e-6)
    for mine, theirs in zip(*map(jax.tree.leaves, (gradients, others)), strict=True):
        # Sums over tokens are in another order.
        assert np.linalg.norm(mine - theirs) <= 1e-5 * np.linalg.norm(mine)


class Noisy(nn.Module):
    """Adds noise of one draw to its input."""

    @nn.compact
    def __call__(self, x):
        return remat.by_blocks(Noisy.noise, self, x, "full")

    def noise(self, x):
        return x + jax.random.normal(self.make_rng("dropout"), x.shape)


def test_each_block_has_random_numbers_of_its_own(monkeypatch):
    monkeypatch.setattr(remat, "SHORTEST", 1)
    monkeypatch.setattr(remat, "BLOCK", 4 * TOKENS // 4)
    x = jnp.zeros((1, TOKENS, 3))
    found = Noisy().apply({}, x, rngs={"dropout": jax.random.key(0)})
    parts = found.reshape(4, -1)
    assert len(np.unique(parts[:, 0])) == 4


@pytest.mark.parametrize(
    "rows, tokens, blocks",
    [(1, 4096, 2), (3, 4096, 6), (5, 1000, 4), (1, 4099, 1), (4, 512, 1)],
    ids=["one row", "three rows", "rows that are cut", "a prime", "little"],
)
def test_how_many_blocks_there_are(rows, tokens, blocks):
    """Blocks have 2,048 tokens in float32, or the largest divisor below that and above 512."""
    assert remat._blocks(jnp.zeros((rows, tokens, 2))) == blocks


def test_a_long_row_may_initialise_a_model(pair, monkeypatch):
    monkeypatch.setattr(remat, "SHORTEST", 1)
    monkeypatch.setattr(remat, "BLOCK", ROWS * TOKENS)
    made = pair("llama-linear")
    tokens = jax.ShapeDtypeStruct((ROWS, TOKENS), jnp.int32)
    found = jax.eval_shape(made.model.init, jax.random.key(0), tokens)
    assert jax.tree.structure(found["params"]) == jax.tree.structure(made.variables["params"])


def test_a_policy_that_keeps_activations_has_one_block(pair, monkeypatch):
    monkeypatch.setattr(remat, "SHORTEST", 1)
    monkeypatch.setattr(remat, "BLOCK", ROWS * TOKENS)
    made = pair("llama-linear")
    tokens = np.ones((ROWS, TOKENS), np.int32)
    wide = f"[{ROWS * TOKENS},{made.model.config.hidden}]"
    for name, there in (("full", False), ("dots", True), ("none", True)):
        model = dataclasses.replace(made.model, remat=name)
        traced = jax.jit(lambda v, model=model: model.apply(v, tokens)).trace(made.variables)
        assert (wide in str(traced.jaxpr)) == there


@pytest.mark.parametrize("sizes, blocks", [((1, 1, 1), 4), ((2, 1, 1), 1), ((1, 2, 1), 1)])
def test_all_tokens_are_one_block_on_several_devices(sizes, blocks):
    where = NamedSharding(AbstractMesh(sizes, sharding.AXES), PartitionSpec())
    x = jax.ShapeDtypeStruct((8, 1024, 2), jnp.float32, sharding=where)
    assert remat._blocks(x) == blocks
