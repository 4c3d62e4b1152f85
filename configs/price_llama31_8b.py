"""Price: a product description -> its price, with Llama 3.1 8B and two thousand examples."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            model=dict(path="meta-llama/Llama-3.1-8B", dtype="bfloat16", quant="nf4-double"),
            data=dict(source="ed-donner/items_prompts_lite", rows=2000, task="price"),
            trainable=dict(rank=32, alpha=64, dropout=0.1, targets="attention"),
            optim=dict(name="adamw", lr=1e-4, weight_decay=0.001),
            schedule=dict(name="cosine", warmup=0.03),
            batch=dict(rows=16, accumulate=4, max_length=256),
            epochs=1,
            eval=dict(split="val", rows=250, every=25),
            log=dict(every=5, wandb="price"),
        )
    )
