"""What products take on a CPU beside the buffers of a program, read from compiled programs."""

import jax
import jax.numpy as jnp

from jaxtune.runs.plan.packing import copied_bytes

ROWS, WIDTH, HIDDEN, LAYERS = 96, 32, 64, 3


def compiled(body) -> str:
    """A loop over layers of two weights each, as the compiler of this CPU has it."""
    up = jax.ShapeDtypeStruct((LAYERS, WIDTH, HIDDEN), jnp.float32)
    down = jax.ShapeDtypeStruct((LAYERS, HIDDEN, WIDTH), jnp.float32)
    x = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32)
    scanned = jax.jit(lambda x, *weights: jax.lax.scan(body, x, weights)[0])
    return scanned.lower(x, up, down).compile().as_text()


def test_half_of_the_left_factors_of_a_loop_count():
    text = compiled(lambda x, weights: (jnp.tanh(x @ weights[0]) @ weights[1], None))
    factors = 4 * (ROWS * WIDTH + ROWS * HIDDEN)
    assert copied_bytes(text) == factors // 2


def test_a_program_without_products_takes_nothing():
    assert copied_bytes(compiled(lambda x, weights: (x + weights[0].sum(), None))) == 0
