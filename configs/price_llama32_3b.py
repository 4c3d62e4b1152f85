"""Price: a product description -> its price, with Llama 3.2 3B.

`price_llama32_3b.py:full` trains larger adapters, on all linear maps, with the full dataset. With
`--config.hub.repo='price-{name}' --config.hub.every=save` the adapter is pushed to a private
repository at every save.
"""

from ml_collections import ConfigDict

SIZES = dict(
    lite=dict(targets="attention", rank=32, alpha=64),
    full=dict(targets="all-linear", rank=256, alpha=512),
)


def get_config(size: str = "lite") -> ConfigDict:
    return ConfigDict(
        dict(
            model=dict(path="meta-llama/Llama-3.2-3B", dtype="bfloat16", quant="nf4-double"),
            data=dict(source=f"ed-donner/items_prompts_{size}", task="price"),
            trainable=dict(dropout=0.1, **SIZES[size]),
            optim=dict(name="adamw", lr=1e-4, weight_decay=0.001),
            schedule=dict(name="cosine", warmup=0.01),
            batch=dict(rows=32, max_length=256),
            epochs=1,
            eval=dict(split="val", rows=500, every=100),
            checkpoint=dict(every=100),
            log=dict(every=5, wandb="price"),
        )
    )
