"""Scaling schemes against transformers' own, and the rotation against complex numbers."""

import jax.numpy as jnp
import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from jaxtune.families.huggingface import rotary
from jaxtune.models import rope

LONG = dict(
    short_factor=[1.0 + i / 50 for i in range(32)], long_factor=[1.0 + i for i in range(32)]
)
SCHEMES = {
    "linear": dict(rope_type="linear", factor=4.0),
    "llama3": dict(
        rope_type="llama3",
        factor=32.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    ),
    "yarn": dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32_768),
    "yarn-tuned": dict(
        rope_type="yarn",
        factor=40.0,
        original_max_position_embeddings=4096,
        beta_fast=16,
        beta_slow=2,
        mscale=0.707,
        mscale_all_dim=1.1,
    ),
    "yarn-smooth": dict(
        rope_type="yarn",
        factor=2.0,
        original_max_position_embeddings=512,
        truncate=False,
        attention_factor=1.5,
    ),
    "longrope": dict(rope_type="longrope", original_max_position_embeddings=4096, **LONG),
    "longrope-factor": dict(
        rope_type="longrope", original_max_position_embeddings=4096, factor=16.0, **LONG
    ),
}


@pytest.mark.parametrize("name", SCHEMES)
def test_frequencies_are_the_reference_s(name):
    config = LlamaConfig(
        hidden_size=512,
        num_attention_heads=8,
        max_position_embeddings=131_072,
        rope_parameters=SCHEMES[name] | dict(rope_theta=500_000.0),
    )
    make = ROPE_INIT_FUNCTIONS[SCHEMES[name]["rope_type"]]
    want, scale = make(config, device="cpu")
    got = rotary(config.to_dict())
    # One unit in the last place, for powers that torch rounds otherwise; see the module's note.
    np.testing.assert_array_max_ulp(np.float32(got.short), want.numpy(), 1)
    assert got.scale == pytest.approx(scale)
    if got.long:
        want, _ = make(config, device="cpu", seq_len=got.switch + 1)
        np.testing.assert_array_max_ulp(np.float32(got.long), want.numpy(), 1)


def test_rotation_turns_pairs_and_passes_the_rest():
    spinning = rope.default(100.0, 4)
    position = jnp.asarray([[0, 3, 9]])
    cosine, sine = rope.angles(spinning, position, position)
    x = np.random.default_rng(0).normal(size=(1, 3, 2, 7)).astype(np.float32)
    got = np.asarray(rope.rotate(jnp.asarray(x), cosine, sine))
    turned = (x[..., :2] + 1j * x[..., 2:4]) * np.exp(
        1j * np.asarray(position)[..., None, None] * np.asarray(spinning.short)
    )
    np.testing.assert_allclose(got[..., :2], turned.real, atol=1e-5)
    np.testing.assert_allclose(got[..., 2:4], turned.imag, atol=1e-5)
    np.testing.assert_array_equal(got[..., 4:], x[..., 4:])


def test_long_sequences_take_the_long_frequencies():
    both = rope.Rope(1.0, "both", short=(1.0,), long=(0.5,), switch=8, scale=2.0)
    position = jnp.asarray([[1, 1]])
    cosine, _ = rope.angles(both, position, jnp.asarray([[8, 9]]))
    np.testing.assert_allclose(cosine[0, :, 0], [2 * np.cos(1.0), 2 * np.cos(0.5)], rtol=1e-6)
