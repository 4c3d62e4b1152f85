"""Compares the time and memory of a LoRA step of the palette job with TRL and PEFT.

    pip install trl
    python benchmarks/train_palette.py [--rounds 7] [--directory DIR]

The model has Gemma 3 270M's full size and random weights, which are written to DIR (by default a
temporary directory, 0.5 GB). A step is 16 rows of a prompt and a palette, about 105 tokens per row,
of which about 42 are scored: float32, LoRA r=16 on all seven linear maps, dropout 0.05, AdamW,
gradient clipping. Each trainer runs in its own process, and the processes take turns, one step
each, on the same rows; together they need about 12 GB of memory. TRL runs with 16 rows at once and
with one row accumulated 16 times, both without gradient checkpointing, which would only slow it
down. Run nothing else meanwhile: waiting for a core slows a trainer disproportionately.
"""

import argparse
import dataclasses
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import turns
from shapes import GEMMA_3_270M

ROWS, LENGTH, SCORED = 16, 120, 48  # rows per step; maximum tokens and scored tokens per row
PARTS, REMAT = 4, "dots"  # jaxtune's micro-batches per step, and its rematerialisation
RANK, ALPHA, DROPOUT = 16, 32, 0.05
OPTIMIZER = dict(lr=5e-5, weight_decay=0.01, clip_norm=1.0)
FASTER, MEMORY = 2.0, 2.5e9  # claimed minimum speed-up over TRL, and maximum peak memory in bytes


def main() -> None:
    """Lets the trainers take turns and prints a table."""
    trainers = {
        "jaxtune": run_jaxtune,
        "TRL, 1 x 16": partial(run_trl, batch=1),
        "TRL, 16 x 1": partial(run_trl, batch=16),
    }
    turns.main(__doc__.splitlines()[0], GEMMA_3_270M, trainers, report)


def rows(step: int) -> turns.Rows:
    """Returns the rows of a step."""
    random = np.random.default_rng(step)
    made = []
    for _ in range(ROWS):
        prompt, palette = random.integers(50, 76), random.integers(40, 45)
        made.append((random.integers(3, 262_144, prompt + palette), int(prompt)))
    return made


def run_jaxtune(directory: Path, steps: int) -> None:
    """Trains with jaxtune."""
    import jax

    import jaxtune

    model, variables = jaxtune.load(directory)
    model = dataclasses.replace(model, remat=REMAT)
    variables = jaxtune.add_lora(
        variables, rank=RANK, alpha=ALPHA, dropout=DROPOUT, key=jax.random.key(0)
    )
    optimizer = jaxtune.optimizer("adamw", "linear", total_steps=steps, **OPTIMIZER)
    turns.train(model, variables, optimizer, map(batch, range(steps)))


def batch(step: int):
    """Returns the batch of a step for jaxtune, one row per line."""
    from jaxtune.data.batches import collate, split

    lines = [[example] for example in turns.examples(rows(step))]
    return split(collate(lines, shape=(ROWS, LENGTH, SCORED)), PARTS)


def run_trl(directory: Path, steps: int, batch: int) -> None:
    """Trains with TRL."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = turns.trl(
            model,
            dict(r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT),
            map(rows, range(steps)),
            output_dir=scratch,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=ROWS // batch,
            max_steps=steps,
            learning_rate=OPTIMIZER["lr"],
            weight_decay=OPTIMIZER["weight_decay"],
            max_grad_norm=OPTIMIZER["clip_norm"],
            lr_scheduler_type="linear",
            bf16=False,
        )
        turns.tell(ready=True)
        trainer.train()


def report(found: dict[str, turns.Run], options: argparse.Namespace) -> None:
    """Prints the measurements and checks them against the claims."""
    rates = {name: turns.rate(run, rows) for name, run in found.items()}
    turns.table(found, rates, ROWS, options)
    ours, *peers = rates.values()
    faster, peak = ours / max(peers), found["jaxtune"]["peak"]
    turns.compare(
        {
            f"{faster:.2f} times TRL's better rate, minimum {FASTER}": faster >= FASTER,
            f"peak {peak / 1e9:.2f} GB, limit {MEMORY / 1e9}": peak <= MEMORY,
            "same first loss": turns.same_first_loss(found.values()),
        }
    )


if __name__ == "__main__":
    main()
