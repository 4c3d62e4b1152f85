"""A checkpoint small enough to train in a second: random weights, a tokenizer, the true layout."""

import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp

import jaxtune
from jaxtune import families
from tests.data import made

CONFIG = dict(
    model_type="gemma3_text",
    vocab_size=512,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=256,
    sliding_window=24,
    layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    rope_theta=1_000_000.0,
    rope_local_base_freq=10_000.0,
    query_pre_attn_scalar=16,
    rms_norm_eps=1e-6,
)
THEMES = ("sea", "sand", "dusk", "moss", "rust", "snow", "night", "clay")


def write_base(directory: Path, **changes) -> Path:
    """Write a Gemma-like checkpoint with random weights."""
    with tempfile.TemporaryDirectory() as origin:
        (Path(origin) / "config.json").write_text(json.dumps(CONFIG | changes))
        model = families.read_config(Path(origin))[2].clone(origin=jaxtune.Origin(origin))
        params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
        jaxtune.save_merged(model, {"params": params}, directory, dtype="float32")
    made.gemma(directory)
    return directory


def settings(base: Path, rows: Path, **changes) -> dict:
    """Values of a config of four steps; a change replaces a whole section, or `steps`."""
    values = {
        "steps": 4,
        "model": {"path": str(base)},
        "data": {"source": str(rows), "workers": 0},
        "trainable": {"rank": 2},
        "batch": {"rows": 4, "max_length": 64, "packing": True},
    }
    return {**values, **changes}


def records(count: int) -> list[dict]:
    """Rows of unequal length whose suffix follows from the prefix."""
    return [
        {
            "prefix": " and ".join([THEMES[n % 8]] * (1 + n % 3)) + ":",
            "suffix": f" #{n % 8}a{n % 8}b{n % 8}c" * (1 + n % 2),
        }
        for n in range(count)
    ]


def write_rows(file: Path, count: int = 40) -> Path:
    """JSON lines of `records`."""
    file.write_text("".join(json.dumps(record) + "\n" for record in records(count)))
    return file
