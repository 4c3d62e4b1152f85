"""Cross-entropy beside the whole table of logits, however it is cut up."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune.models import tables
from jaxtune.models.decoder import Decoder
from jaxtune.training import loss
from tests.marks import slow_after

POSITIONS, VOCABULARY = 23, 192


@pytest.fixture(params=slow_after(1, [3.0, None]), ids=["capped", "plain"])
def problem(request, pair):
    """A model with a tied head of a vocabulary that blocks divide, and scored positions."""
    config = pair("gemma2-windows").model.config
    model = Decoder(replace(config, vocabulary=VOCABULARY, logit_softcap=request.param))
    random = np.random.default_rng(0)
    table = jnp.asarray(random.normal(size=(VOCABULARY, config.width)), jnp.float32)
    hidden = jnp.asarray(random.normal(size=(POSITIONS, config.width)), jnp.float32)
    targets = jnp.asarray(random.integers(0, VOCABULARY, POSITIONS), jnp.int32)
    weights = jnp.asarray(random.uniform(size=POSITIONS) > 0.2, jnp.float32)
    return model, table, hidden, targets, weights


def written_out(model, table, hidden, targets, weights):
    """The same loss as a textbook has it."""
    variables = {"params": {"embed": {"w": table}}}
    chances = jax.nn.log_softmax(model.apply(variables, hidden, method="logits"))
    return -jnp.sum(weights * chances[jnp.arange(POSITIONS), targets])


CUTS = {  # fewest tokens of a block, and logits in memory at once
    "whole": (VOCABULARY, POSITIONS * VOCABULARY),
    "blocks": (3, POSITIONS * VOCABULARY),
    "blocks-and-chunks": (20, 7 * 24),
}


@pytest.mark.slow
@pytest.mark.parametrize("cut", slow_after(1, reversed(CUTS)))
def test_a_frozen_head_in_blocks_is_the_whole(problem, cut, monkeypatch):
    model, table, *rest = problem
    fewest, logits = CUTS[cut]
    monkeypatch.setattr(tables, "BLOCK", fewest)
    monkeypatch.setattr(loss, "CHUNK_BYTES", 4 * logits)

    def cut_up(hidden, *others):
        return 1.5 * loss.cross_entropy(model, {}, {"params/embed/w": table}, hidden, *others)

    got, slope = jax.jit(jax.value_and_grad(cut_up))(*rest)
    want, true = jax.value_and_grad(lambda *rest: 1.5 * written_out(model, table, *rest))(*rest)
    assert float(got) == pytest.approx(float(want), rel=1e-6)
    assert float(cut_up(*rest)) == pytest.approx(float(want), rel=1e-6)
    # Sums of 192 float32 terms, in another order.
    np.testing.assert_allclose(slope, true, atol=2e-6 * float(jnp.abs(true).max()) * 5)


def test_logits_far_apart_neither_overflow_nor_vanish(problem, monkeypatch):
    """The highest logit comes in the last block, a hundred above what came before."""
    model, table, hidden, targets, _ = problem
    monkeypatch.setattr(tables, "BLOCK", 3)
    last = len(table) - 1  # a row of the last block
    table = table.at[last].set(40 * hidden[0])
    rest = (hidden[:1], targets[:1], jnp.ones((1,)))
    got, slope = jax.value_and_grad(
        lambda hidden: loss.cross_entropy(model, {}, {"params/embed/w": table}, hidden, *rest[1:])
    )(rest[0])
    logits = model.apply({"params": {"embed": {"w": table}}}, rest[0], method="logits")[0]
    want = jax.nn.logsumexp(logits) - logits[targets[0]]
    assert float(got) == pytest.approx(float(want), rel=1e-5)
    assert jnp.isfinite(slope).all()


def test_no_more_logits_than_a_block_holds(problem, monkeypatch):
    model, table, *rest = problem
    monkeypatch.setattr(tables, "BLOCK", 3)
    graded = jax.grad(
        lambda hidden: loss.cross_entropy(model, {}, {"params/embed/w": table}, hidden, *rest[1:])
    )
    program = str(jax.make_jaxpr(graded)(rest[0]))
    assert f"f32[{POSITIONS},3]" in program
    assert f"f32[{POSITIONS},{VOCABULARY}]" not in program


@pytest.mark.parametrize("fewest", [20, 500])
def test_an_untied_head_is_read_in_blocks_too(problem, fewest, monkeypatch):
    """192 tokens are nine blocks of 20 and one of 12, or one smaller than a block."""
    model, table, *rest = problem
    monkeypatch.setattr(tables, "BLOCK", fewest)
    model = Decoder(replace(model.config, tied=False))
    head, embedding = {"params/head/w": table.T}, {"params/embed/w": table + 1}

    def cut_up(hidden):
        return loss.cross_entropy(model, {}, {**head, **embedding}, hidden, *rest[1:])

    def plainly(hidden):
        return loss.plain_cross_entropy(model, {}, {**head, **embedding}, hidden, *rest[1:])

    got, slope = jax.jit(jax.value_and_grad(cut_up))(rest[0])
    want, true = jax.value_and_grad(plainly)(rest[0])
    assert float(got) == pytest.approx(float(want), rel=1e-6)
    # Sums of 192 float32 terms, in another order.
    np.testing.assert_allclose(slope, true, atol=1e-5 * float(jnp.abs(true).max()))


def test_an_untied_bfloat16_head_is_not_widened(problem):
    model, _, hidden, targets, weights = problem
    tokens = 8 * tables.BLOCK
    model = Decoder(replace(model.config, vocabulary=tokens, tied=False))
    head = jax.ShapeDtypeStruct((hidden.shape[1], tokens), jnp.bfloat16)

    def graded(head, hidden):
        given = ({}, {"params/head/w": head}, hidden, targets, weights)
        return jax.grad(lambda hidden: loss.cross_entropy(model, *given[:2], hidden, *given[3:]))(
            hidden
        )

    program = jax.jit(graded).lower(head, hidden).compile()
    # A block in float32, its logits, and little else; the head in float32 is eight blocks.
    block = 4 * tables.BLOCK * (hidden.shape[1] + 3 * POSITIONS)
    assert program.memory_analysis().temp_size_in_bytes < 2 * block
