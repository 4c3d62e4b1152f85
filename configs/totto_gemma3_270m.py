"""ToTTo: a table with highlighted cells -> a sentence, with Gemma 3 270M.

The data files are those of the ToTTo release, or `GEM/totto` written as JSON lines.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            model=dict(path="google/gemma-3-270m-it", quant="nf4-double"),
            data=dict(
                source="data/totto/train.jsonl", rows=8000, task="totto", too_long="cut_prefix"
            ),
            trainable=dict(rank=8, alpha=16, dropout=0.05, targets="all-linear"),
            optim=dict(name="adamw", lr=5e-5),
            schedule=dict(name="cosine", warmup=0.06),
            batch=dict(rows=16, accumulate=16, max_length=1024),
            epochs=1,
            eval=dict(source="data/totto/validation.jsonl", rows=500, every=100),
            checkpoint=dict(every=250),
            log=dict(every=25, tensorboard=True),
        )
    )
