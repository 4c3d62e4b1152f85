"""How long a checkpoint takes to load, and how much memory at its worst, beside transformers.

    python benchmarks/load.py [--directory DIR] [--repeat 3] [--dtype float32]

A random checkpoint of Llama-3.2-1B's shape, in bfloat16, is written to DIR (a temporary directory
by default, 2.5 GB) unless it is there already. Each loader runs in processes of its own, in turn.
"""

import argparse
import datetime
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np

LLAMA_1B = dict(
    model_type="llama",
    architectures=["LlamaForCausalLM"],
    vocab_size=128_256,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=64,
    max_position_embeddings=131_072,
    tie_word_embeddings=True,
    rope_theta=500_000.0,
    torch_dtype="bfloat16",
)
LOADERS = ("jaxtune", "transformers")


def main() -> None:
    """Measure every loader and print a table."""
    options = parse()
    if options.child:
        print(json.dumps(measure(options.child, options.directory, options.dtype)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        directory = options.directory or Path(scratch) / "llama-1b"
        largest, total = write_checkpoint(directory)
        runs = {loader: [] for loader in LOADERS}
        for _ in range(options.repeat + 1):  # the first round warms the page cache
            for loader in LOADERS:
                runs[loader].append(in_process(loader, directory, options.dtype))
    wider = 2 if options.dtype == "float32" else 1
    report(runs, wider * largest, wider * total, options.dtype)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--child", choices=LOADERS, help=argparse.SUPPRESS)
    return parser.parse_args()


def write_checkpoint(directory: Path) -> tuple[int, int]:
    """A random checkpoint, unless it is there; bytes of its largest stacked leaf, and of all."""
    from jaxtune import families
    from jaxtune.checkpoint import names
    from jaxtune.checkpoint.files import write_sharded
    from jaxtune.checkpoint.load import leaf_shapes
    from jaxtune.models.decoder import Decoder

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(LLAMA_1B))
    _, family, config = families.read(directory)
    shapes = leaf_shapes(Decoder(config))
    tensors = names.by_tensor(names.pieces(family.tables[0], shapes))
    plan = {name: (parts[0].shape, ml_dtypes.bfloat16) for name, parts in tensors.items()}
    random = np.random.default_rng(0)

    def produce(name):
        values = random.standard_normal(plan[name][0], np.float32) * 0.02
        return values.astype(ml_dtypes.bfloat16)

    if not (directory / "model.safetensors").exists():
        write_sharded(directory, plan, produce)
    sizes = [2 * int(np.prod(shape)) for shape in shapes.values()]
    return max(sizes), sum(sizes)


def in_process(loader: str, directory: Path, dtype: str) -> dict:
    """One load in a process of its own."""
    command = [sys.executable, __file__, "--child", loader, "--dtype", dtype]
    command += ["--directory", str(directory)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(loader: str, directory: Path, dtype: str) -> dict:
    """Seconds for one load, and the most memory the process ever held, imports included."""
    if loader == "jaxtune":
        import jax

        import jaxtune

        jax.devices()
        begun = time.perf_counter()
        jax.block_until_ready(jaxtune.load(directory, dtype=dtype))
    else:
        import torch
        from transformers import AutoModelForCausalLM

        begun = time.perf_counter()
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype))
        # Its weights are views of the file until they are used; ours are in memory.
        for weight in model.parameters():
            weight.view(torch.int16).max()
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return dict(seconds=seconds, peak=peak)


def report(runs: dict, largest: int, total: int, dtype: str) -> None:
    """The figures, and the bound that ours keep to."""
    print(f"{datetime.date.today()}, {cpu()}, {os.cpu_count()} cores")
    print(f"{dtype}: parameters {total / 1e9:.2f} GB, largest stacked leaf {largest / 1e9:.2f} GB")
    for loader, found in runs.items():
        seconds = [each["seconds"] for each in found[1:]]
        peak = max(each["peak"] for each in found)
        print(
            f"{loader:14} {statistics.median(seconds):6.2f} s "
            f"({min(seconds):.2f}-{max(seconds):.2f})   peak {peak / 1e9:.2f} GB"
        )
    bound = total + largest + 400e6
    peak = max(each["peak"] for each in runs["jaxtune"])
    print(f"bound: parameters + largest leaf + 0.4 GB = {bound / 1e9:.2f} GB", end=" ")
    print("kept" if peak <= bound else "BROKEN")
    sys.exit(peak > bound)


def cpu() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    found = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return found[0] if found else platform.processor()


if __name__ == "__main__":
    main()
