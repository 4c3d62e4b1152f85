"""What one QLoRA step of the ToTTo job takes, beside TRL with PEFT and bitsandbytes.

    pip install trl
    python benchmarks/train_totto.py [--rounds 7] [--directory DIR]

The model has Gemma 3 270M's true shape and random weights, written to DIR (by default a temporary
directory, 0.5 GB), and is held in NF4 with double quantisation. A step is 16 rows of a linearised
table and a sentence: 60 to 240 tokens, and 15 to 40 that are scored. LoRA r=8 beside all seven
linear maps, dropout 0.05, AdamW, the norm clipped. Each trainer lives in a process of its own and
the processes take turns, a step each, on the same rows; about 14 GB of memory hold them all. Ours
packs the rows on lines. The peer takes them one by one, as the job has it, and by fours, without
gradient checkpointing, which would only slow it down; more at once would take it more memory and
padding. All compute in float32, and their first losses are the same; the peer's last form computes
in bfloat16 instead, and what is claimed does not count it. Let nothing else run: a trainer that
has to wait for a core loses more than its share of the time.
"""

import argparse
import dataclasses
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import turns
from shapes import GEMMA_3_270M

ROWS = 16  # of a step
LINES, LENGTH, SCORED = 8, 384, 96  # that they are packed on; tokens and scored tokens of each
PARTS, REMAT = 8, "full"  # of our step: micro-batches, and what is kept of each (see Decoder)
KIND = "nf4-double"
RANK, ALPHA, DROPOUT = 8, 16, 0.05
OPTIMIZER = dict(lr=5e-5, weight_decay=0.0, clip_norm=1.0)
FASTER, SMALLER = 2.0, 0.6  # what is claimed: times the peer's tokens a second, of its memory
OURS, HALF = "jaxtune", "TRL, 1 x 16, bfloat16"


def main() -> None:
    """Let the trainers take turns and print a table."""
    trainers = {
        OURS: run_jaxtune,
        "TRL, 1 x 16": partial(run_trl, batch=1),
        "TRL, 4 x 4": partial(run_trl, batch=4),
        HALF: partial(run_trl, batch=1, half=True),
    }
    turns.main(__doc__.splitlines()[0], GEMMA_3_270M, trainers, report)


def rows(step: int) -> turns.Rows:
    """A step's rows; prompts are as long in every step, in another order."""
    random = np.random.default_rng(step)
    prompts = random.permutation(np.linspace(60, 240, ROWS, dtype=int)).tolist()
    return [
        (random.integers(3, 262_144, prompt + random.integers(15, 41)), prompt)
        for prompt in prompts
    ]


def run_jaxtune(directory: Path, steps: int) -> None:
    """Train under jaxtune."""
    import jax

    import jaxtune

    # As it is stored, in bfloat16, the embedding is what it is in float32.
    model, variables = jaxtune.load(directory, "auto", KIND, compute="float32")
    model = dataclasses.replace(model, remat=REMAT)
    variables = jaxtune.add_lora(
        variables, rank=RANK, alpha=ALPHA, dropout=DROPOUT, key=jax.random.key(0)
    )
    optimizer = jaxtune.optimizer("adamw", "cosine", total_steps=steps, **OPTIMIZER)
    turns.train(model, variables, optimizer, map(batch, range(steps)))


def batch(step: int):
    """A step's rows as jaxtune takes them, packed."""
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
    """Train under TRL, which computes in float32 unless `half`."""
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
            if weight.requires_grad and not half:  # TRL has made it bfloat16
                weight.data = weight.data.float()
        turns.tell(ready=True)
        trainer.train()


def quantised(directory: Path, half: bool):
    """The base as bitsandbytes holds it."""
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
    """The figures, and the bounds that ours keep to."""
    rates = {name: turns.rate(run, rows) for name, run in found.items()}
    turns.table(found, rates, ROWS, options)
    peer = max(found.keys() - {OURS, HALF}, key=rates.get)
    faster, smaller = rates[OURS] / rates[peer], found[OURS]["peak"] / found[peer]["peak"]
    print(f"beside {HALF}: {rates[OURS] / rates[HALF]:.2f} times its rate")
    turns.compare(
        {
            f"{faster:.2f} times the rate of {peer}, at least {FASTER}": faster >= FASTER,
            f"{smaller:.2f} of its peak memory, at most {SMALLER}": smaller <= SMALLER,
            "the same first loss in float32": turns.same_first_loss(
                run for name, run in found.items() if name != HALF
            ),
        }
    )


if __name__ == "__main__":
    main()
