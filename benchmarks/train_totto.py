"""Compares the time and memory of a QLoRA step of the ToTTo job with TRL, PEFT and bitsandbytes.

    pip install trl
    python benchmarks/train_totto.py [--rounds 7] [--directory DIR]

The model has Gemma 3 270M's full size and random weights, which are written to DIR (by default a
temporary directory, 0.5 GB), and is quantised to NF4 with double quantisation. A step is 16 rows of
a linearised table (60 to 240 tokens) and a sentence (15 to 40 scored tokens): LoRA r=8 on all seven
linear maps, dropout 0.05, AdamW, gradient clipping. Each trainer runs in its own process, and the
processes take turns, one step each, on the same rows; together they need about 14 GB of memory.
jaxtune packs the rows. TRL takes them one at a time, as the job is configured, and four at a time,
without gradient checkpointing, which would only slow it down; larger batches would need more memory
and padding. All compute in float32 and start from the same loss, except one variant of TRL that
computes in bfloat16, which the claims do not cover. Run nothing else meanwhile: a trainer that has
to wait for a core is slowed disproportionately.
"""

import argparse
import dataclasses
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import turns
from shapes import GEMMA_3_270M

ROWS = 16  # per step
LINES, LENGTH, SCORED = 8, 384, 96  # packed lines per step; tokens and scored tokens per line
PARTS, REMAT = 8, "full"  # jaxtune's micro-batches per step, and its rematerialisation
KIND = "nf4-double"
RANK, ALPHA, DROPOUT = 8, 16, 0.05
OPTIMIZER = dict(lr=5e-5, weight_decay=0.0, clip_norm=1.0)
FASTER, SMALLER = 2.0, 0.6  # claimed minimum speed-up over TRL, and maximum share of its memory
OURS, HALF = "jaxtune", "TRL, 1 x 16, bfloat16"


def main() -> None:
    """Lets the trainers take turns and prints a table."""
    trainers = {
        OURS: run_jaxtune,
        "TRL, 1 x 16": partial(run_trl, batch=1),
        "TRL, 4 x 4": partial(run_trl, batch=4),
        HALF: partial(run_trl, batch=1, half=True),
    }
    turns.main(__doc__.splitlines()[0], GEMMA_3_270M, trainers, report)


def rows(step: int) -> turns.Rows:
    """Returns the rows of a step; every step has the same prompt lengths in another order."""
    random = np.random.default_rng(step)
    prompts = random.permutation(np.linspace(60, 240, ROWS, dtype=int)).tolist()
    return [
        (random.integers(3, 262_144, prompt + random.integers(15, 41)), prompt)
        for prompt in prompts
    ]


def run_jaxtune(directory: Path, steps: int) -> None:
    """Trains with jaxtune."""
    import jax

    import jaxtune

    # The embedding stays in bfloat16, as stored, which loses nothing compared with float32.
    model, variables = jaxtune.load(directory, "auto", KIND, compute="float32")
    model = dataclasses.replace(model, remat=REMAT)
    variables = jaxtune.add_lora(
        variables, rank=RANK, alpha=ALPHA, dropout=DROPOUT, key=jax.random.key(0)
    )
    optimizer = jaxtune.optimizer("adamw", "cosine", total_steps=steps, **OPTIMIZER)
    turns.train(model, variables, optimizer, map(batch, range(steps)))


def batch(step: int):
    """Returns the batch of a step for jaxtune, packed."""
    from jaxtune.data.batches import collate, split
    from jaxtune.data.packing import packed

    made = rows(step)
    examples = turns.examples(made)
    lengths = np.array([len(tokens) for tokens, _ in made])
    scored = lengths - [prompt for _, prompt in made]
    lines = packed(lengths, scored, LENGTH)
    shared = [[examples[row] for row in lines[number]] for number in range(len(lines))]
    return split(collate(shared, shape=(LINES, LENGTH, SCORED)), PARTS)


def run_trl(directory: Path, steps: int, batch: int, half: bool = False) -> None:
    """Trains with TRL, in bfloat16 if `half`, else in float32."""
    with tempfile.TemporaryDirectory() as scratch:
        trainer = turns.trl(
            quantised(directory, half),
            dict(r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT),
            map(rows, range(steps)),
            output_dir=scratch,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=ROWS // batch,
            max_steps=steps,
            learning_rate=OPTIMIZER["lr"],
            weight_decay=OPTIMIZER["weight_decay"],
            max_grad_norm=OPTIMIZER["clip_norm"],
            lr_scheduler_type="cosine",
            bf16=half,
        )
        for weight in trainer.model.parameters():
            if weight.requires_grad and not half:  # TRL has converted it to bfloat16
                weight.data = weight.data.float()
        turns.tell(ready=True)
        trainer.train()


def quantised(directory: Path, half: bool):
    """Returns the base, quantised by bitsandbytes."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dtype = torch.bfloat16 if half else torch.float32
    stored = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return AutoModelForCausalLM.from_pretrained(
        directory, quantization_config=stored, dtype=dtype, device_map="cpu"
    )


def report(found: dict[str, turns.Run], options: argparse.Namespace) -> None:
    """Prints the measurements and checks them against the claims."""
    rates = {name: turns.rate(run, rows) for name, run in found.items()}
    turns.table(found, rates, ROWS, options)
    peer = max(found.keys() - {OURS, HALF}, key=rates.get)
    faster, smaller = rates[OURS] / rates[peer], found[OURS]["peak"] / found[peer]["peak"]
    print(f"{rates[OURS] / rates[HALF]:.2f} times the rate of {HALF}")
    turns.compare(
        {
            f"{faster:.2f} times the rate of {peer}, minimum {FASTER}": faster >= FASTER,
            f"{smaller:.2f} of its peak memory, limit {SMALLER}": smaller <= SMALLER,
            "same first loss in float32": turns.same_first_loss(
                run for name, run in found.items() if name != HALF
            ),
        }
    )


if __name__ == "__main__":
    main()
