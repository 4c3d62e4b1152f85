"""Price on the bundled tiny base: a product description -> its price, in minutes."""

from pathlib import Path

from ml_collections import ConfigDict

TINY = Path(__file__).parent / "tiny"


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            model=dict(path=TINY / "base", dtype="float32", quant="nf4-double"),
            data=dict(source=TINY / "price.jsonl", task="price"),
            trainable=dict(rank=32, alpha=64, dropout=0.1, targets="attention"),
            optim=dict(name="adamw", lr=2e-3),
            schedule=dict(name="cosine", warmup=0.03),
            batch=dict(rows=16, max_length=128),
            epochs=5,
            eval=dict(holdout=100, every=50),
            log=dict(every=10),
        )
    )
