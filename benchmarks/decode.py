"""New tokens a second beside transformers, and the memory that decoding takes.

    python benchmarks/decode.py [--rounds 5] [--directory DIR]

The model has Gemma 3 270M's true shape and random weights, written to DIR (by default a temporary
directory, 0.5 GB). A round is prompts of 66 tokens answered with the 38 likeliest tokens each, in
float32, one prompt at a time and eight together; prompts are read within the time. Each runs in a
process of its own and they take turns, on the same prompts. What memory it takes with weights held
in fewer bits, for one prompt at a time, is measured after that. Let nothing else run.
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
FASTER = {1: 1.3, 8: 1.3}  # what is claimed: times transformers' tokens a second, by batch
HELD = {"nf4-double": ("auto", "nf4-double"), "bfloat16": ("bfloat16", None)}
MEMORY = {"nf4-double": 1.0e9}  # and bytes at most, for one prompt, weights held so
THREADS = 2


def main() -> None:
    """Let the decoders take turns, then report; a child process is one of them."""
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
            found = turns.measure(decoders(), options)
            options.rounds = 0
            held = {name: turns.measure([name], options)[name] for name in holders()}
            report(found, held, options)


def decoders() -> dict:
    """What takes turns: either side, at every batch."""
    sides = {"jaxtune": run_jaxtune, "transformers": run_transformers}
    return {f"{name} {batch}": partial(sides[name], batch) for batch in FASTER for name in sides}


def holders() -> dict:
    """What runs alone, for its memory."""
    return {name: partial(run_jaxtune, 1, held=held) for name, held in HELD.items()}


def prompts(batch: int, step: int) -> np.ndarray:
    """A round's prompts, int64[batch, PROMPT]."""
    return np.random.default_rng(step).integers(3, GEMMA_3_270M["vocab_size"], (batch, PROMPT))


def run_jaxtune(
    batch: int, directory: Path, steps: int, held: tuple[str, str | None] = ("float32", None)
) -> None:
    """Decode under jaxtune."""
    import jaxtune

    model, variables = jaxtune.load(directory, *held)
    turns.tell(ready=True)
    for step in range(steps):
        asked = prompts(batch, step).tolist()
        begun = turns.turn()
        found = jaxtune.generate(model, variables, asked, NEW, stops=(), batch=batch)
        turns.tell(**turns.spent(begun), tokens=found)


def run_transformers(batch: int, directory: Path, steps: int) -> None:
    """Decode under transformers."""
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
    """The figures, and the bounds that ours keep to."""
    busy = f"of which {options.busy:.1f} were busy"
    print(f"{datetime.date.today()}, {cpu()}, {os.cpu_count()} cores, {busy}")
    print("| | new tokens a second | from | to | peak memory |")
    print("| --- | --- | --- | --- | --- |")
    for name, run in held.items():
        print(f"| jaxtune 1, {name} | | | | {run['peak'] / 1e9:.2f} GB |")
    for name, run in found.items():
        rates = sorted(all_rates(name, run))
        figures = " | ".join(f"{each:.1f}" for each in (middle(name, run), rates[0], rates[-1]))
        print(f"| {name} | {figures} | {run['peak'] / 1e9:.2f} GB |")
    turns.compare(claims(found) | memory(held))


def claims(found: dict[str, turns.Run]) -> dict[str, bool]:
    """Whether each batch is as much faster as is claimed, with the same answers."""
    kept = {}
    for batch, least in FASTER.items():
        ours, theirs = f"jaxtune {batch}", f"transformers {batch}"
        faster = middle(ours, found[ours]) / middle(theirs, found[theirs])
        same, count = agreement(found[ours], found[theirs])
        kept[f"batch {batch}: {faster:.2f} times transformers, at least {least}"] = faster >= least
        kept[f"batch {batch}: {same} of {count} answers the same"] = same == count
    return kept


def memory(held: dict[str, turns.Run]) -> dict[str, bool]:
    """Whether weights held in fewer bits take as little as is claimed."""
    kept = {}
    for name, most in MEMORY.items():
        peak = held[name]["peak"]
        kept[f"peak {peak / 1e9:.2f} GB with {name}, at most {most / 1e9}"] = peak <= most
    return kept


def agreement(one: turns.Run, other: turns.Run) -> tuple[int, int]:
    """Answers that are the same to the last token, and all."""
    pairs = zip(one["steps"], other["steps"], strict=True)
    same = [a == b for x, y in pairs for a, b in zip(x["tokens"], y["tokens"], strict=True)]
    return sum(same), len(same)


def all_rates(name: str, run: turns.Run) -> list[float]:
    """New tokens a second in each round after the first, which compiles."""
    batch = int(name.split()[-1])
    return [batch * NEW / step["seconds"] for step in run["steps"][1:]]


def middle(name: str, run: turns.Run) -> float:
    """The median of them."""
    return statistics.median(all_rates(name, run))


if __name__ == "__main__":
    main()
