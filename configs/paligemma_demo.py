"""PaliGemma on the bundled tiny base: a picture -> a sentence that describes it, in minutes."""

from pathlib import Path

from ml_collections import ConfigDict

TINY = Path(__file__).parent / "tiny_pictures"


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            model=dict(path=f"{TINY}/base/paligemma-tiny-pt-70.f16.npz", dtype="float16"),
            data=dict(
                source=f"{TINY}/train.jsonl",
                task="caption",
                tokenizer=f"{TINY}/base/paligemma_tokenizer.model",
            ),
            trainable=dict(kind="attention"),
            optim=dict(name="sgd", lr=0.03, momentum=0.9, clip_norm=None),
            schedule=dict(name="cosine", warmup=0.1),
            batch=dict(rows=8, max_length=64, weighting="example"),
            epochs=20,
            eval=dict(source=f"{TINY}/held_out.jsonl", every=100),
            generate=dict(max_new_tokens=32),
            log=dict(every=10),
        )
    )
