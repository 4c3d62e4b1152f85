"""What adapters must not cost: memory for copies of weights, and norms that are known already."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtune
from jaxtune import tree
from jaxtune.adapters import lora
from jaxtune.decoding import beams, generate
from jaxtune.decoding.sampling import Sampling
from jaxtune.training.step import split
from tests.adapters.test_lora import busy

MATRICES = {(64, 32), (32, 64), (32, 32), (32, 48), (48, 32)}  # of the layers of `base`
PROMPT = [3, 40, 50, 7, 9]


@pytest.fixture(scope="module")
def dora(base):
    """A model, and its variables with DoRA adapters whose directions have moved."""
    model, variables = jaxtune.load(base)
    return model, busy(
        jaxtune.add_lora(variables, rank=2, key=jax.random.key(0), variant="dora", dropout=0.1)
    )


def equations(jaxpr) -> Iterator:
    """Those of a program and of all programs inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


def loops(program, *arguments) -> list:
    """The bodies of its `while_loop`s."""
    whole = jax.make_jaxpr(program)(*arguments).jaxpr
    found = [each for each in equations(whole) if each.primitive.name == "while"]
    return [each.params["body_jaxpr"].jaxpr for each in found]


def reductions(body) -> list[tuple[int, ...]]:
    """Shapes of what is summed, where that is a whole weight of a layer."""
    sums = [each for each in equations(body) if each.primitive.name == "reduce_sum"]
    shapes = [each.invars[0].aval.shape for each in sums]
    return [shape for shape in shapes if shape[-2:] in MATRICES]


def answered(model, variables) -> list[int]:
    return jaxtune.generate(model, variables, [PROMPT], 9, stops=())[0]


def streamed(model, variables) -> list[int]:
    how = dict(stops=(), sampling=Sampling.of())
    return list(generate.stream(model, variables, PROMPT, 9, **how))


def searched(model, variables) -> list[int]:
    return beams.beam_search(model, variables, [PROMPT], 9, beams=2, stops=())[0].tokens


@pytest.mark.slow
@pytest.mark.parametrize(
    ("decode", "module", "program"),
    [
        (answered, generate, "advanced"),
        (streamed, generate, "advanced"),
        (searched, beams, "_searched"),
    ],
)
def test_norms_are_not_computed_for_each_token(dora, monkeypatch, decode, module, program):
    model, variables = dora
    ran, sums = getattr(module, program), []

    def watched(model, *arguments):
        for body in loops(lambda *rest: ran(model, *rest), *arguments):
            sums.append(len(reductions(body)))
        return ran(model, *arguments)

    monkeypatch.setattr(module, program, watched)
    tokens = decode(model, variables)
    assert sums and not any(sums)
    # Without norms made beforehand there is a sum for each weight, and the tokens are the same.
    sums.clear()
    monkeypatch.setattr(module, "with_norms", lambda variables: variables)
    assert decode(model, variables) == tokens
    assert set(sums) == {7}


@pytest.mark.slow
def test_norms_are_those_of_the_product(dora):
    _, variables = dora
    ready = lora.with_norms(variables)
    adapter = ready["lora"]["layers"]["mlp"]["up"]["w"]
    w = variables["params"]["layers"]["mlp"]["up"]["w"]
    whole = np.float64(w) + np.float64(adapter.scale)[:, None, None] * (
        np.float64(adapter.a) @ np.float64(adapter.b)
    )
    np.testing.assert_allclose(adapter.norms, np.linalg.norm(whole, axis=1), rtol=1e-5)
    plain = {name: variables[name] for name in ("params",)}
    assert lora.with_norms(plain) is plain


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["dora", "lora"])
@pytest.mark.parametrize("quant", ["nf4-double", "int8"])
def test_no_dequantised_weight_is_kept_for_the_backward_pass(base, variant, quant):
    model, variables = jaxtune.load(base, quant=quant)
    variables = jaxtune.add_lora(
        variables, rank=2, key=jax.random.key(0), variant=variant, dropout=0.1
    )
    trained, frozen = split(variables, lora.TRAINABLE)
    model = model.clone(remat="none")

    def logits(trained):
        rngs = {"dropout": jax.random.key(1)}
        return model.apply(tree.combine(trained, frozen), np.int32([PROMPT]), rngs=rngs)

    kept = jax.tree.leaves(jax.eval_shape(lambda trained: jax.vjp(logits, trained)[1], trained))
    assert [each for each in kept if each.ndim == 4 and each.dtype != jnp.float32]  # the codes
    wide = [each for each in kept if each.shape[-2:] in MATRICES and each.dtype.itemsize > 1]
    assert not wide


@pytest.mark.slow
def test_pissa_decomposes_a_layer_at_a_time():
    layers, inside, outside, rank = 8, 48, 40, 3
    w = jax.random.normal(jax.random.key(0), (layers, inside, outside))

    def decomposed(count):
        adapter = lora._new(w[:count], rank, 2.0, 0.0, jax.random.key(1))
        return jax.jit(lora._principal).lower(w[:count], adapter).compile(), adapter

    (small, _), (large, adapter) = decomposed(2), decomposed(layers)
    fewer, more = (each.memory_analysis().temp_size_in_bytes for each in (small, large))
    assert more < fewer + 4 * inside * outside  # one of six more matrices
    made, rest = large(w, adapter)
    u, s, vt = np.linalg.svd(np.float64(w), full_matrices=False)
    principal = (u[..., :rank] * s[:, None, :rank]) @ vt[:, :rank]
    product = 2 * np.float64(made.a) @ np.float64(made.b)
    np.testing.assert_allclose(product, principal, atol=1e-4)
    np.testing.assert_allclose(rest, np.float64(w) - principal, atol=1e-4)
    # Both factors have the same share of it.
    np.testing.assert_allclose(
        jnp.linalg.norm(made.a, axis=1), jnp.linalg.norm(made.b, axis=2), rtol=1e-4
    )


def test_matrices_are_those_of_the_base(base):
    params = tree.flatten(jaxtune.load(base)[1]["params"])
    assert {leaf.shape[1:] for leaf in params.values() if leaf.ndim == 3} == MATRICES


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_without_dropout_no_mask_is_computed(base, dropout):
    model, variables = jaxtune.load(base)
    key = jax.random.key(0)
    variables = jaxtune.add_lora(variables, rank=2, key=key, variant="dora", dropout=dropout)
    program = jax.make_jaxpr(
        lambda variables: model.apply(variables, np.int32([PROMPT]), rngs={"dropout": key})
    )(variables)
    made = [each.outvars[0].aval for each in equations(program.jaxpr)]
    masks = [each for each in made if each.dtype == jnp.uint32 and each.size >= len(PROMPT) * 32]
    assert bool(masks) == bool(dropout)
