"""Measures the peak memory of merging adapters on a quantised base into a float16 checkpoint.

    python benchmarks/merge.py [--directory DIR] [--layers 4]

The base has Llama 3.1 8B's width and vocabulary, the given number of its 32 layers and random
weights, which are written to DIR (a temporary directory by default; 3.9 GB with 4 layers). It is
loaded as nf4-double with non-zero adapters of rank 32, which are merged into the original weights,
read one tensor at a time. The claim is about the memory on top of the loaded model: a few times the
largest leaf, however many layers there are.
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

LEAVES = 3  # claimed maximum of the additional memory, in multiples of the largest leaf


def main() -> None:
    """Writes the base in its own process, merges, and reports the peak memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--directory", type=Path, help="where to write the base (default: temporary)"
    )
    parser.add_argument("--layers", type=int, default=4, help="layers of the base (default: 4)")
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
    """Loads, merges and reports; exits with 1 if the claim does not hold."""
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
        f"{held / 1e9:.2f} GB before merging, peak {above / 1e9:.2f} GB above that; the largest "
        f"leaf, the embedding, takes {leaf / 1e9:.2f} GB in 16 bits"
    )
    kept = above <= LEAVES * leaf
    print(f"additional peak: {above / leaf:.1f} × largest leaf, limit {LEAVES}: {verdict(kept)}")
    sys.exit(not kept)


def verdict(kept: bool) -> str:
    """Returns the printed result of a check."""
    return "kept" if kept else "BROKEN"


def resident() -> int:
    """Returns the anonymous resident memory in bytes: mapped file pages can be evicted anytime."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", status)[1])


def watched(peaks: list[int], done: threading.Event) -> None:
    """Records the resident memory a hundred times per second."""
    while not done.wait(0.01):
        peaks.append(resident())


if __name__ == "__main__":
    main()
