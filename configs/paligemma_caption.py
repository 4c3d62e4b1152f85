"""PaliGemma 3B: a picture -> a caption, by tuning the attention of its language model."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            model=dict(path="data/paligemma-3b-pt-224.f16.npz", dtype="float16"),
            data=dict(
                source="data/captions/train.jsonl",
                rows=90,
                task="caption",
                tokenizer="data/paligemma_tokenizer.model",
            ),
            trainable=dict(kind="attention"),
            optim=dict(name="sgd", lr=0.03, clip_norm=None),
            schedule=dict(name="cosine", warmup=0.1),
            batch=dict(rows=8, max_length=256 + 128, weighting="example"),
            steps=64,
            eval=dict(source="data/captions/val.jsonl", every=16),
            checkpoint=dict(every=32),
            log=dict(every=1),
        )
    )
