"""Compares the file sizes of an adapter and a merged model of Gemma 3 270M's shape with PEFT's.

    python benchmarks/sizes.py [--directory DIR]

A base of that shape with random weights is written to DIR (a temporary directory by default; 0.5
GB). Adapters of rank 8 on all linear maps are saved, and merged into a float16 model. PEFT and
transformers, in a separate process, then load that adapter, save it and the merged model again, and
compare the merged weights of both.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from shapes import GEMMA_3_270M, cpu, write_checkpoint

MEGABYTES = {"adapter": 7.6, "merged": 536}  # claimed maximum sizes, after rounding


def main() -> None:
    """Writes both with jaxtune and with PEFT, and reports their sizes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--directory", type=Path, help="where to write the base (default: temporary)"
    )
    parser.add_argument("--peer", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        peer(options.directory, options.peer)
        return
    with tempfile.TemporaryDirectory() as scratch:
        base, place = options.directory or Path(scratch) / "base", Path(scratch)
        ours(base, place)
        command = [sys.executable, __file__, "--directory", str(base), "--peer", str(place)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        apart = json.loads(done.stdout.splitlines()[-1])
        report(place, apart)


def ours(base: Path, place: Path) -> None:
    """Writes the base, and the adapter and the merged model with jaxtune."""
    import jax

    import jaxtune

    write_checkpoint(base, GEMMA_3_270M)
    model, variables = jaxtune.load(base)
    variables = jaxtune.add_lora(variables, rank=8, alpha=16, key=jax.random.key(0))
    busy = jax.tree.map(lambda leaf: leaf + 0.01, variables["lora"])
    variables = jax.block_until_ready(variables | {"lora": busy})
    jaxtune.save_adapter(variables, place / "adapter", base)
    jaxtune.save_merged(model, variables, place / "merged", "float16")


def peer(base: Path, place: Path) -> None:
    """Writes both with PEFT; prints the largest difference between merged weights as JSON."""
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(model, place / "adapter")
    adapted.save_pretrained(place / "peft-adapter")
    adapted.merge_and_unload().half().save_pretrained(place / "peft-merged")
    one, other = (
        load_file(place / name / "model.safetensors") for name in ("merged", "peft-merged")
    )
    assert one.keys() == other.keys()
    print(json.dumps(max(float((one[name] - other[name]).abs().max()) for name in one)))


def report(place: Path, apart: float) -> None:
    """Prints the sizes; exits with 1 if one exceeds its limit."""
    print(f"{datetime.date.today()}, {cpu()}, {os.cpu_count()} cores")
    kept = True
    for what, most in MEGABYTES.items():
        size, beside = (megabytes(place / name) for name in (what, f"peft-{what}"))
        within = round(size, 1 if most < 10 else 0) <= most
        kept &= within
        word = "kept" if within else "BROKEN"
        print(f"{what}: {size:.2f} MB, PEFT's {beside:.2f} MB; limit {most} MB: {word}")
    print(f"largest difference between merged weights and PEFT's: {apart:.1e}")
    sys.exit(not kept)


def megabytes(directory: Path) -> float:
    """Returns the size of a directory's safetensors files, in MB."""
    return sum(file.stat().st_size for file in directory.glob("*.safetensors")) / 1e6


if __name__ == "__main__":
    main()
