"""What can be seen inside a model, beside transformers and an unrolled copy in plain JAX."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxtune
from jaxtune import tree
from jaxtune.models import attention
from jaxtune.models.decoder import Block, Shared
from jaxtune.models.layout import arrange
from jaxtune.models.rope import angles
from jaxtune.training.objectives import Forward
from tests import reference
from tests.training.test_step import padded, texts

NAMES = ["gemma2-windows", "llama-llama3"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_attention_weights_and_layers_are_those_of_transformers(name, pair):
    made = pair(name)
    tokens = reference.tokens(made.case)
    _, found = made.model.apply(made.variables, tokens, mutable=["attention", "states"])
    (weights,), (states,) = jax.tree.leaves(found["attention"]), jax.tree.leaves(found["states"])
    with torch.no_grad():
        want = made.reference(
            torch.as_tensor(tokens), output_attentions=True, output_hidden_states=True
        )
    assert weights.shape == (len(want.attentions), *want.attentions[0].shape)
    for ours, theirs in zip(weights, want.attentions, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-5)
    # Its last hidden state is normed.
    for ours, theirs in zip(states[:-1], want.hidden_states[1:-1], strict=True):
        theirs = theirs.numpy()
        np.testing.assert_allclose(ours, theirs, atol=5e-5 * np.abs(theirs).max())


@pytest.mark.slow
def test_any_module_is_captured_with_its_layers_on_the_first_axis(pair):
    made = pair(NAMES[0])
    tokens = reference.tokens(made.case)
    _, found = made.model.apply(
        made.variables,
        tokens,
        capture_intermediates=lambda module, _: module.name in ("gate", "down"),
        mutable=["intermediates"],
    )
    layers = len(made.model.config.layers)
    shapes = {path: leaf.shape for path, leaf in tree.flatten(found).items()}
    assert len(shapes) == 2 and all(shape[:1] == (layers,) for shape in shapes.values())
    assert made.model.apply(made.variables, tokens).shape[-1] == made.model.config.vocabulary


@pytest.mark.slow
def test_hidden_states_at_scored_positions(base):
    model, variables = jaxtune.load(base, "float32")
    batch = padded(list(texts(0)))
    found = jaxtune.hidden_states(model, variables, batch)
    _, states = model.apply(variables, batch.tokens, valid=batch.valid, mutable=["states"])
    (whole,) = jax.tree.leaves(states)
    rows = np.arange(len(batch.tokens))[:, None]
    np.testing.assert_allclose(found, whole[:, rows, batch.where], atol=1e-5)


@pytest.mark.slow
def test_attention_may_be_a_function(base):
    seen = []

    def own(q, k, v, mask, **how):
        seen.append(q.shape)
        return attention.plain(q, k, v, mask, **how)

    model, variables = jaxtune.load(base, "float32", attention=own)
    plain, _ = jaxtune.load(base, "float32", attention="plain")
    tokens = jnp.asarray([[2, 10, 20, 30]])
    np.testing.assert_array_equal(model.apply(variables, tokens), plain.apply(variables, tokens))
    assert seen
    with pytest.raises(ValueError, match=r"attention 'mine': expected one of .*, or a function"):
        jaxtune.load(base, attention="mine")


def unrolled(model, params, batch):
    """The loss of a model whose layers are applied one by one, from all logits."""
    config = model.config
    layout = arrange(batch.tokens.shape, None, None, batch.valid, None)
    x = model.apply({"params": params}, batch.tokens, method="embed")
    for number, kind in enumerate(config.layers):
        cosine, sine = angles(kind.rope, layout.position, layout.position)
        shared = Shared(layout, cosine[None], sine[None], attention="plain")
        layer = jax.tree.map(lambda leaf, n=number: leaf[n], params["layers"])
        alone = Block(replace(config, layers=(kind,)))
        place = (jnp.int32(0), jnp.int32(0))
        ((x, _), _) = alone.apply({"params": layer}, (x, None), place, shared)
    scale = config.norm_offset + params["norm"]["scale"]
    x = x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + config.norm_epsilon) * scale
    scores = model.apply({"params": params}, x, method="logits")
    chances = jax.nn.log_softmax(jnp.take_along_axis(scores, batch.where[..., None], axis=1))
    picked = jnp.take_along_axis(chances, batch.targets[..., None], axis=-1)[..., 0]
    return -(picked * batch.weights).sum()


@pytest.mark.slow
def test_a_hessian_vector_product_is_that_of_an_unrolled_copy(base):
    model, variables = jaxtune.load(base, "float32")
    params = variables["params"]
    batch = jax.tree.map(jnp.asarray, padded(list(texts(0))))
    keys = iter(jax.random.split(jax.random.key(0), 99))
    direction = jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape), params)

    def ours(params):
        return Forward(model, {"params": params}, {}).cross_entropy(batch, plain=True)

    def product(loss):
        return jax.jit(lambda p, v: jax.jvp(jax.grad(loss), (p,), (v,))[1])(params, direction)

    got, want = product(ours), product(lambda params: unrolled(model, params, batch))
    for path, leaf in tree.flatten(want).items():
        scale = float(jnp.abs(leaf).max())
        np.testing.assert_allclose(tree.flatten(got)[path], leaf, atol=2e-4 * scale, err_msg=path)
