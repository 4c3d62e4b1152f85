"""Compares decoding speed (new tokens per second) and peak memory with transformers.

    python benchmarks/decode.py [--rounds 5] [--directory DIR]

The model has Gemma 3 270M's full size and random weights, which are written to DIR (by default a
temporary directory, 0.5 GB). In each round every decoder generates 38 tokens greedily for prompts
of 66 tokens, in float32, one prompt at a time and eight together; the time includes prefill. Each
decoder runs in its own process, and they take turns on the same prompts. Afterwards the peak memory
with bfloat16 and quantised weights is measured, one prompt at a time. Run nothing else meanwhile.
"""

import datetime
import os
import statistics
import subprocess
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import turns
from shapes import GEMMA_3_270M, cpu, write_checkpoint

PROMPT, NEW = 66, 38  # tokens
FASTER = {1: 1.3, 8: 1.3}  # claimed minimum speed-up over transformers, by batch size
HELD = {"nf4-double": ("auto", "nf4-double"), "bfloat16": ("bfloat16", None)}
MEMORY = {"nf4-double": 0.95e9}  # claimed maximum peak memory in bytes, by type of the weights
THREADS = 2


def main() -> None:
    """Lets the decoders take turns, then reports; a child process runs one of them."""
    options = turns.parse(__doc__.splitlines()[0])
    if options.child == turns.CHECKPOINT:
        write_checkpoint(options.directory, GEMMA_3_270M)
    elif options.child:
        {**decoders(), **holders()}[options.child](options.directory, options.rounds + 1)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            options.directory = options.directory or Path(scratch) / "base"
            subprocess.run(turns.command(turns.CHECKPOINT, options), check=True)
            options.busy = os.getloadavg()[0]
            found = turns.measure(turns.started(decoders(), options), options.rounds)
            options.rounds = 0
            held = {}
            for name in holders():  # one at a time
                held |= turns.measure(turns.started([name], options), options.rounds)
            report(found, held, options)


def decoders() -> dict:
    """Returns the decoders that take turns by name: both libraries, at each batch size."""
    sides = {"jaxtune": run_jaxtune, "transformers": run_transformers}
    return {f"{name} {batch}": partial(sides[name], batch) for batch in FASTER for name in sides}


def holders() -> dict:
    """Returns the decoders that run alone, to measure their memory, by type of the weights."""
    return {name: partial(run_jaxtune, 1, held=held) for name, held in HELD.items()}


def prompts(batch: int, step: int) -> np.ndarray:
    """Returns a round's prompts, int64[batch, PROMPT]."""
    return np.random.default_rng(step).integers(3, GEMMA_3_270M["vocab_size"], (batch, PROMPT))


def run_jaxtune(
    batch: int, directory: Path, steps: int, held: tuple[str, str | None] = ("float32", None)
) -> None:
    """Decodes with jaxtune."""
    import jaxtune

    model, variables = jaxtune.load(directory, *held)
    turns.tell(ready=True)
    for step in range(steps):
        asked = prompts(batch, step).tolist()
        begun = turns.turn()
        found = jaxtune.generate(model, variables, asked, NEW, stops=(), batch=batch)
        turns.tell(**turns.spent(begun), tokens=found)


def run_transformers(batch: int, directory: Path, steps: int) -> None:
    """Decodes with transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(THREADS)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    turns.tell(ready=True)
    for step in range(steps):
        asked = torch.from_numpy(prompts(batch, step))
        begun = turns.turn()
        given = dict(attention_mask=torch.ones_like(asked), max_new_tokens=NEW, do_sample=False)
        found = model.generate(asked, **given)[:, PROMPT:].tolist()
        turns.tell(**turns.spent(begun), tokens=found)


# The report


def report(found: dict[str, turns.Run], held: dict[str, turns.Run], options) -> None:
    """Prints the measurements and checks them against the claims."""
    busy = f"load average {options.busy:.1f}"
    print(f"{datetime.date.today()}, {cpu()}, {os.cpu_count()} cores, {busy}")
    print("| | new tokens per second | min | max | peak memory |")
    print("| --- | --- | --- | --- | --- |")
    for name, run in held.items():
        print(f"| jaxtune 1, {name} | | | | {run['peak'] / 1e9:.2f} GB |")
    for name, run in found.items():
        rates = sorted(all_rates(name, run))
        figures = " | ".join(f"{each:.1f}" for each in (median(name, run), rates[0], rates[-1]))
        print(f"| {name} | {figures} | {run['peak'] / 1e9:.2f} GB |")
    turns.compare(claims(found) | memory(held))


def claims(found: dict[str, turns.Run]) -> dict[str, bool]:
    """Returns whether each batch size reaches the claimed speed-up, with the same answers."""
    kept = {}
    for batch, least in FASTER.items():
        ours, theirs = f"jaxtune {batch}", f"transformers {batch}"
        faster = median(ours, found[ours]) / median(theirs, found[theirs])
        same, count = agreement(found[ours], found[theirs])
        claim = f"batch {batch}: {faster:.2f} times the speed of transformers, minimum {least}"
        kept[claim] = faster >= least
        kept[f"batch {batch}: {same} of {count} answers identical"] = same == count
    return kept


def memory(held: dict[str, turns.Run]) -> dict[str, bool]:
    """Returns whether the peak memory with quantised weights is within the claimed limit."""
    kept = {}
    for name, most in MEMORY.items():
        peak = held[name]["peak"]
        kept[f"peak {peak / 1e9:.2f} GB with {name}, limit {most / 1e9}"] = peak <= most
    return kept


def agreement(one: turns.Run, other: turns.Run) -> tuple[int, int]:
    """Returns the number of identical answers, and the number of all answers."""
    pairs = zip(one["steps"], other["steps"], strict=True)
    same = [a == b for x, y in pairs for a, b in zip(x["tokens"], y["tokens"], strict=True)]
    return sum(same), len(same)


def all_rates(name: str, run: turns.Run) -> list[float]:
    """Returns the new tokens per second in each round after the first, which compiles."""
    batch = int(name.split()[-1])
    return [batch * NEW / step["seconds"] for step in run["steps"][1:]]


def median(name: str, run: turns.Run) -> float:
    """Returns the median of the new tokens per second."""
    return statistics.median(all_rates(name, run))


if __name__ == "__main__":
    main()
