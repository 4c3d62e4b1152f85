"""Parts of a bfloat16 table: the same numbers and gradients, and no float32 of the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune.models import tables

RANDOM = np.random.default_rng(0)
TABLE = jnp.asarray(RANDOM.standard_normal((2 * tables.BLOCK, 24)), jnp.bfloat16)
INDEX = jnp.asarray([[0, 5, 8191], [7, 7, 4096]])
X = jnp.asarray(RANDOM.standard_normal((3, 24)), jnp.float32)


def wide(table):
    return table.astype(jnp.float32)


@pytest.mark.slow
def test_rows_and_scores_are_those_of_the_table():
    np.testing.assert_array_equal(tables.rows(TABLE, INDEX, jnp.float32), wide(TABLE)[INDEX])
    # Sums of 24 products in another order; the last block, or the only one, is smaller.
    for table in (TABLE, TABLE[: tables.BLOCK + 5], TABLE[: tables.FEW - 5]):
        np.testing.assert_allclose(tables.scores(X, table), X @ wide(table).T, atol=1e-5)
        np.testing.assert_allclose(tables.scores(X, table.T, 1), X @ wide(table).T, atol=1e-5)
    assert np.isnan(tables.rows(TABLE, jnp.asarray([len(TABLE)]), jnp.float32)).all()


@pytest.mark.slow
def test_gradients_are_those_of_the_table():
    def ours(table, x):
        return (tables.scores(x, table) ** 2).sum() + (
            tables.rows(table, INDEX, x.dtype) ** 3
        ).sum()

    def plainly(table, x):
        return ((x @ wide(table).T) ** 2).sum() + (wide(table)[INDEX] ** 3).sum()

    for got, want in zip(*(jax.grad(f, (0, 1))(TABLE, X) for f in (ours, plainly)), strict=True):
        got, want = wide(got), wide(want)
        # Gradients of the table are rounded to bfloat16 before they are added.
        assert np.linalg.norm(got - want) < 2**-8 * np.linalg.norm(want)


@pytest.mark.parametrize(
    "part, table",
    [
        (lambda table, x, index: tables.rows(table, index, jnp.float32).sum(), TABLE),
        (lambda table, x, index: tables.scores(x, table).max(), TABLE),
        (lambda table, x, index: tables.scores(x, table, 1).max(), TABLE.T),
        (lambda table, x, index: jax.grad(lambda x: tables.scores(x, table).max())(x), TABLE),
    ],
    ids=["rows", "scores", "scores of columns", "gradient of scores"],
)
def test_nothing_of_the_table_s_size_is_made(part, table):
    def looped(table, x, indices):
        return jax.lax.map(lambda index: part(table, x, index), indices)

    indices = jnp.stack([INDEX] * 4)
    program = jax.jit(looped).lower(table, X, indices).compile()
    # A block in float32, logits, and little else; less than a quarter of the table in float32.
    assert program.memory_analysis().temp_size_in_bytes < 2 * TABLE.size  # half of it in float32
