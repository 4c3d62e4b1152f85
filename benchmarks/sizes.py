"""How large results are: an adapter and a merged model of Gemma 3 270M's shape, beside PEFT's.

    python benchmarks/sizes.py [--directory DIR]

A base of that shape with random weights is written to DIR (a temporary directory by default; 0.5
GB). Adapters of rank 8 on all linear maps are written alone, and merged into float16. PEFT and
transformers, in a process of their own, then read that adapter, write it and the merged model anew,
and compare the merged weights of both.
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

MEGABYTES = {"adapter": 7.6, "merged": 536}  # at most, rounded as they are printed: what is claimed


def main() -> None:
    """Write both, let the peer do the same, and say how large they are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path)
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
    """The adapter and the merged model, as jaxtune writes them."""
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
    """The same as PEFT writes them; prints the largest difference of a merged weight."""
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
    """Print the sizes; exit with 1 if they are not what is claimed."""
    print(f"{datetime.date.today()}, {cpu()}, {os.cpu_count()} cores")
    kept = True
    for what, most in MEGABYTES.items():
        size, beside = (megabytes(place / name) for name in (what, f"peft-{what}"))
        within = round(size, 1 if most < 10 else 0) <= most
        kept &= within
        word = "kept" if within else "not kept"
        print(f"{what}: {size:.2f} MB, PEFT's {beside:.2f} MB; at most {most}: {word}")
    print(f"merged weights, the largest difference from PEFT's: {apart:.1e}")
    sys.exit(not kept)


def megabytes(directory: Path) -> float:
    """Of its weights."""
    return sum(file.stat().st_size for file in directory.glob("*.safetensors")) / 1e6


if __name__ == "__main__":
    main()
