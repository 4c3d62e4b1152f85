"""Palette: the description of a theme -> four colours, with Gemma 3 270M."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            model=dict(path="google/gemma-3-270m", dtype="float32"),
            data=dict(source="data/palettes.csv", task="palette"),
            trainable=dict(rank=16, alpha=32, dropout=0.05, targets="all-linear"),
            optim=dict(name="adamw", lr=5e-5, weight_decay=0.01, clip_norm=1.0),
            schedule=dict(name="linear", warmup=0),
            batch=dict(rows=16, accumulate=16, max_length=256),
            epochs=3,
            eval=dict(holdout=0.1, every=100),
            checkpoint=dict(every=200, keep=2, best=True),
            log=dict(every=10, tensorboard=True),
        )
    )
