"""ToTTo on the bundled tiny base: a table with highlighted cells -> a sentence, in minutes."""

from pathlib import Path

from ml_collections import ConfigDict

TINY = Path(__file__).parent / "tiny"


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            model=dict(path=TINY / "base", dtype="float32", quant="nf4-double"),
            data=dict(source=TINY / "totto.jsonl", task="totto"),
            trainable=dict(rank=8, alpha=16, dropout=0.05, targets="all-linear"),
            optim=dict(name="adamw", lr=2e-3),
            schedule=dict(name="cosine", warmup=0.06),
            batch=dict(rows=16, accumulate=2, max_length=256),
            epochs=5,
            eval=dict(holdout=60, every=50),
            log=dict(every=10),
        )
    )
