"""PaliGemma 3B: a picture and a question -> the answer; `paligemma_vqa.py:qlora` needs less memory.

Rows have a question and the answers that people gave to it, as in VQAv2.
"""

from ml_collections import ConfigDict

METHODS = dict(
    attention=dict(
        model=dict(dtype="float16"),
        trainable=dict(kind="attention"),
        optim=dict(name="sgd", lr=0.03, clip_norm=None),
    ),
    qlora=dict(
        model=dict(dtype="bfloat16", quant="nf4-double"),
        trainable=dict(rank=8, alpha=16, dropout=0.05, targets="attention"),
        optim=dict(name="adamw", lr=1e-4),
    ),
)


def get_config(method: str = "attention") -> ConfigDict:
    config = ConfigDict(
        dict(
            model=dict(path="data/paligemma-3b-pt-224.f16.npz"),
            data=dict(
                source="data/vqa/train.jsonl",
                task="vqa",
                tokenizer="data/paligemma_tokenizer.model",
            ),
            schedule=dict(name="cosine", warmup=0.1),
            batch=dict(rows=8, max_length=256 + 64, weighting="example"),
            epochs=1,
            eval=dict(source="data/vqa/val.jsonl", rows=500, every=100),
            generate=dict(max_new_tokens=16),
            log=dict(every=10),
        )
    )
    config.update(METHODS[method])
    return config
