"""Two models compared on rows: which places are looked at, and what tells them apart."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune.assembly.assemble import Assembly
from jaxtune.config import load as configs
from jaxtune.data.examples import Example
from jaxtune.decoding.requests import Completion
from jaxtune.export import verify
from jaxtune.export.verify import LIMITS, PLACES, ModelOutputs, compared, observed
from tests.export.exports import tuned


@pytest.fixture(scope="module")
def loaded(base):
    """With adapters, as tests/export/exports.py makes them, which is the same program."""
    run = tuned(base)
    return run.model, run.variables


@pytest.fixture(scope="module")
def given(loaded):
    return verify.random_rows(loaded[0], count=2, new=4)


@pytest.fixture(scope="module")
def seen(loaded, given):
    return observed(*loaded, given)


@pytest.mark.slow
def test_a_model_is_itself(loaded, given, seen):
    found = compared(seen, observed(*loaded, given), LIMITS["float32"])
    assert (
        found.kept and found.logits == 0 and found.alike == found.answers == len(given.batch.tokens)
    )
    assert found.positions == seen.logits.shape[0] == given.counted.sum()
    assert found.told()["kept"] and "kept" not in found.moved()


@pytest.mark.slow
def test_logits_are_those_of_the_model_at_these_places(loaded, given, seen):
    model, variables = loaded
    whole = np.asarray(model.apply(variables, given.batch.tokens))
    rows = np.arange(len(whole))[:, None]
    # The same sums over other shapes.
    np.testing.assert_allclose(
        seen.logits, whole[rows, given.batch.where][given.counted], atol=1e-4
    )


def test_one_changed_matrix_is_seen(loaded, given, seen):
    model, variables = loaded
    other = jax.tree.map(lambda leaf: leaf, variables)
    w = other["params"]["layers"]["attn"]["k"]["w"]
    other["params"]["layers"]["attn"]["k"]["w"] = w.at[1].set(w[1].T)
    assert not compared(seen, observed(model, other, given), LIMITS["float32"]).kept


def test_logits_that_are_no_numbers_are_an_error(seen):
    other = replace(seen, logits=np.full_like(seen.logits, np.nan))
    with pytest.raises(ValueError, match="logits with infinities or NaNs"):
        compared(seen, other, 1.0)


@pytest.mark.parametrize("log_prob, ties", [(-1.0, 1), (-1.5, 0)])
def test_answers_may_part_where_two_tokens_are_as_likely(log_prob, ties):
    logits = np.array([[0.0, 1.0, 2.0]], np.float32)
    ours = ModelOutputs(logits, [Completion([5, 6, 7], [-0.1, -1.0, -0.1], True)])
    theirs = ModelOutputs(logits, [Completion([5, 8, 9], [-0.1, log_prob, -0.2], True)])
    found = compared(ours, theirs, 1e-4)
    assert (found.alike, found.ties, found.kept) == (0, ties, bool(ties))


def test_places_are_spread_over_what_is_scored():
    def places(tokens: int, first: int) -> list[int]:
        scored = np.arange(tokens) >= first
        thinned = verify._thinned(Example(np.zeros(tokens, np.int32), scored, None, ""))
        return (np.flatnonzero(thinned.scored) - 1).tolist()

    many = places(100, 20)
    assert len(many) == PLACES and many[0] == 19 and many[-1] == 98
    assert places(9, 7) == [6, 7]


def test_long_rows_are_cut():
    example = Example(np.arange(500), np.arange(500) >= 400, np.arange(500) >= 400, "")
    cut = verify._cut(example, 64)
    assert len(cut.tokens) == len(cut.causal) == 64 and cut.scored.sum() == PLACES
    assert cut.scored[-1] and not cut.scored[0]


def test_rows_of_a_config(base, rows, loaded):
    config = configs.parse({"model": {"path": str(base)}, "data": {"source": str(rows)}})
    assembly = Assembly(config, base, "2026-11-21")
    encoder, (source, _) = assembly.encoder, assembly.sources
    found = verify.rows(source, encoder, loaded[0], "these rows", 500, count=3)
    assert found.batch.tokens.shape[0] == 3 and found.new == verify.NEW
    assert found.stops == assembly.tokenizer.stops
    for number, asked in enumerate(found.prompts):
        example = encoder(source[number], "")
        first = int(np.argmax(example.scored))
        assert asked == example.tokens[:first].tolist()
        assert found.batch.where[number, 0] == first - 1
        assert found.batch.valid[number].sum() == len(example.tokens)


def test_random_rows_have_pictures_where_the_model_sees():
    class Wants:
        tokens, token, side = 4, 99, 8

    class Sees:
        pictures = Wants

        class config:
            vocabulary, context = 50, 64

    found = verify.random_rows(Sees, count=2, length=10)
    assert found.batch.tokens.shape == (2, 14) and (found.batch.tokens[:, :4] == 99).all()
    assert [each.shape for each in found.images] == [(1, 8, 8, 3)] * 2
    assert not found.batch.causal[:, :4].any() and found.batch.causal[:, -1].all()
    assert jnp.abs(jnp.stack(found.images)).max() <= 1
