"""Palette on the bundled tiny base: a description of a theme -> four colours, in minutes."""

from pathlib import Path

from ml_collections import ConfigDict

TINY = Path(__file__).parent / "tiny"


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            model=dict(path=TINY / "base", dtype="float32"),
            data=dict(source=TINY / "palette.csv", task="palette"),
            trainable=dict(rank=16, alpha=32, dropout=0.05, targets="all-linear"),
            optim=dict(name="adamw", lr=2e-3, weight_decay=0.01, clip_norm=1.0),
            schedule=dict(name="linear", warmup=0),
            batch=dict(rows=16, max_length=128),
            epochs=5,
            eval=dict(holdout=100, every=50),
            checkpoint=dict(every=100, keep=2, best=True),
            log=dict(every=10, tensorboard=True),
        )
    )
