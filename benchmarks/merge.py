"""How much memory merging takes: adapters on a quantised base into a checkpoint in float16.

    python benchmarks/merge.py [--directory DIR] [--layers 4]

The base has Llama 3.1 8B's width and vocabulary and random weights of so many of its 32 layers,
written to DIR (a temporary directory by default; 3.9 GB with 4). It is held as nf4-double, gets
adapters of rank 32 that are not idle, and is merged into the original weights, which are read a
tensor at a time. What is held does not count: merging is to need a few leaves besides, however many
layers there are.
"""

import argparse
import datetime
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from shapes import LLAMA_3_8B, cpu, write_checkpoint

LEAVES = 3  # of the largest, above what is held: what is claimed


def main() -> None:
    """Write the base in a process of its own, merge, and say what that took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    shape = LLAMA_3_8B | dict(num_hidden_layers=options.layers)
    if options.child:
        write_checkpoint(options.directory, shape)
        return
    with tempfile.TemporaryDirectory() as scratch:
        base = options.directory or Path(scratch) / "base"
        command = [sys.executable, __file__, "--child", "--directory", str(base)]
        subprocess.run([*command, "--layers", str(options.layers)], check=True)
        merge(base, Path(scratch) / "merged", shape)


def merge(base: Path, target: Path, shape: dict) -> None:
    """Load, merge, report; exit with 1 if it took more than is claimed."""
    import jax

    import jaxtune
    from jaxtune.checkpoint.placing import trim

    key = jax.random.key(0)
    model, variables = jaxtune.load(base, "bfloat16", "nf4-double")
    variables = jaxtune.add_lora(variables, rank=32, alpha=64, targets="attention", key=key)
    busy = jax.tree.map(lambda leaf: leaf + 0.01, variables["lora"])
    variables = jax.block_until_ready(variables | {"lora": busy})
    trim()
    held, peaks, done = resident(), [], threading.Event()
    watch = threading.Thread(target=watched, args=(peaks, done))
    watch.start()
    begun = time.monotonic()
    jaxtune.save_merged(model, variables, target, dtype="float16", into="original")
    seconds = time.monotonic() - begun
    done.set()
    watch.join()
    written = sum(file.stat().st_size for file in target.glob("*.safetensors"))
    leaf = 2 * shape["vocab_size"] * shape["hidden_size"]  # the embedding, in 16 bits
    above = max(peaks) - held
    print(f"{datetime.date.today()}, {cpu()}, {os.cpu_count()} cores")
    print(
        f"{shape['num_hidden_layers']} layers, {written / 1e9:.2f} GB written in {seconds:.0f} s; "
        f"{held / 1e9:.2f} GB held, {above / 1e9:.2f} more at most; the largest leaf, the "
        f"embedding, takes {leaf / 1e9:.2f} GB in 16 bits"
    )
    kept = above <= LEAVES * leaf
    print(f"above what is held: {above / leaf:.1f} of that, at most {LEAVES}: {verdict(kept)}")
    sys.exit(not kept)


def verdict(kept: bool) -> str:
    """What is said of a bound."""
    return "kept" if kept else "BROKEN"


def resident() -> int:
    """Bytes of this process that are its own: what it has mapped of files can go at any time."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", status)[1])


def watched(peaks: list[int], done: threading.Event) -> None:
    """Note what is resident, a hundred times a second."""
    while not done.wait(0.01):
        peaks.append(resident())


if __name__ == "__main__":
    main()
