"""The configs of four jobs and the least one, and what is refused of more than that."""

import pytest

from jaxtune.config import checks, fields, schema
from jaxtune.config.fields import ConfigError

PALETTE = '''
"""Palette: the description of a theme -> four colours."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            model=dict(path="google/gemma-3-270m", dtype="float32"),
            data=dict(source="data/palettes.csv", task="palette"),
            trainable=dict(rank=16, alpha=32, dropout=0.05, targets="all-linear"),
            optim=dict(name="adamw", lr=5e-5, weight_decay=0.01, clip_norm=1.0),
            schedule=dict(name="linear", warmup=0),
            batch=dict(rows=16, accumulate=16),
            epochs=3,
            eval=dict(holdout=0.1, every=100),
            checkpoint=dict(every=200, keep=2, best=True),
            log=dict(every=10, tensorboard=True),
        )
    )
'''
# The other jobs, as what their files return.
TOTTO = dict(
    model=dict(path="google/gemma-3-270m-it"),
    data=dict(source="data/totto/train.jsonl", rows=8000),
    trainable=dict(rank=8, alpha=16, dropout=0.05),
    optim=dict(lr=5e-5),
    schedule=dict(name="cosine", warmup=0.06),
    batch=dict(rows=16, accumulate=16, max_length=1024),
    epochs=1,
    eval=dict(source="data/totto/validation.jsonl", rows=500),
)
PALIGEMMA = dict(
    model=dict(path="paligemma-3b-pt-224.f16.npz", dtype="float16"),
    data=dict(source="data/captions.jsonl", tokenizer="paligemma_tokenizer.model"),
    trainable=dict(kind="attention"),
    optim=dict(name="sgd", lr=0.03),
    schedule=dict(name="cosine", warmup=0.1),
    batch=dict(rows=8, max_length=128, weighting="example"),
    mesh=dict(fsdp=-1),
    steps=64,
)
PRICE = dict(
    model=dict(path="meta-llama/Llama-3.2-3B"),
    data=dict(source="ed-donner/items_prompts_lite", prefix="{prompt}", suffix="{completion}"),
    trainable=dict(rank=32, alpha=64, dropout=0.1, targets="attention"),
    optim=dict(name="adamw", lr=1e-4),
    schedule=dict(name="wsd", warmup=0.03, decay=0.2),
    batch=dict(rows=32, accumulate=2, max_length=256, packing=True),
    epochs=1,
    eval=dict(split="val", rows=500, every=100, patience=5),
    log=dict(every=5, wandb="price"),
)
LEAST = dict(model=dict(path="base"), data=dict(source="rows.jsonl"))


def joined(values: dict, more: dict) -> dict:
    """Sections of `more` put into those of `values`."""
    return values | {
        name: {**values.get(name, {}), **each} if isinstance(each, dict) else each
        for name, each in more.items()
    }


def refusal(function, *arguments) -> str:
    with pytest.raises(ConfigError) as caught:
        function(*arguments)
    return str(caught.value)


def problems(more: dict, *overrides: str) -> list[str]:
    """The lines of problems with the least config and what more it is given."""
    settings = [
        *schema.SCHEMA.settings(joined(LEAST, more), "run.py"),
        *map(fields.override, overrides),
    ]
    header, *lines = refusal(schema.SCHEMA.assembled, settings, checks.CHECKS).split("\n  ")
    count = "a problem" if len(lines) == 1 else f"{len(lines)} problems"
    assert header == f"the config has {count}:"
    return lines
