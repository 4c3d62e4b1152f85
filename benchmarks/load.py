"""How long a checkpoint takes to load, and how much memory at its worst, beside transformers.

    python benchmarks/load.py [--directory DIR] [--repeat 3] [--dtype float32] [--quant nf4]

A random checkpoint of Llama-3.2-1B's shape, in bfloat16, is written to DIR (a temporary directory
by default, 2.5 GB) unless it is there already. Each loader runs in processes of its own, in turn.
Under `--quant` linear maps are quantised as they are read; of transformers, bitsandbytes does it,
which makes the nf4 kinds alone.

    python benchmarks/load.py --archive stored --dtype float16

loads PaliGemma 3B's shape from big_vision's .npz instead, which transformers does not read, with
the arrays as they are or "deflated". They are zeros: the file takes no place on disk, and tells
nothing of how long inflating takes.
"""

import argparse
import datetime
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from shapes import LLAMA_3_1B, PALIGEMMA_3B, cpu, write_archive, write_checkpoint

LOADERS = ("jaxtune", "transformers")
CHECKPOINT = "checkpoint"  # the child that writes it: one begins with its parent's peak memory
KINDS = ("nf4", "nf4-double", "int4", "int8")
ARCHIVES = {"stored": zipfile.ZIP_STORED, "deflated": zipfile.ZIP_DEFLATED}


def main() -> None:
    """Measure every loader and print a table."""
    options = parse()
    if options.child == CHECKPOINT:
        print(json.dumps(prepared(options)))
        return
    if options.child:
        print(json.dumps(measure(options.child, options)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        options.directory = options.directory or Path(scratch) / "checkpoint"
        sizes = in_process(CHECKPOINT, options)
        alone = options.archive or options.quant in ("int4", "int8")
        runs = {loader: [] for loader in (LOADERS[:1] if alone else LOADERS)}
        for _ in range(options.repeat + 1):  # the first round warms the page cache
            for loader, found in runs.items():
                found.append(in_process(loader, options))
    report(runs, sizes, options)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--quant", choices=KINDS)
    parser.add_argument("--archive", choices=ARCHIVES)
    parser.add_argument("--child", choices=(*LOADERS, CHECKPOINT), help=argparse.SUPPRESS)
    return parser.parse_args()


def in_process(child: str, options: argparse.Namespace) -> dict:
    """What a process of its own finds."""
    command = [sys.executable, __file__, "--child", child, "--dtype", options.dtype]
    command += ["--directory", str(options.directory)]
    command += ["--quant", options.quant] if options.quant else []
    command += ["--archive", options.archive] if options.archive else []
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def prepared(options: argparse.Namespace) -> dict[str, int]:
    """Write the checkpoint; bytes of all leaves as they are held, and of the largest as it is made.

    One that is quantised is made in float32.
    """
    from jaxtune import quant
    from jaxtune.checkpoint.load import describe

    if options.archive:
        largest = write_archive(source(options), PALIGEMMA_3B, ARCHIVES[options.archive])
    else:
        largest, _ = write_checkpoint(options.directory, LLAMA_3_1B)
    leaves = describe(source(options)).held(options.dtype, options.quant).values()
    held = sum(
        quant.nbytes(leaf.shape, leaf.kind)
        if quant.is_quantized(leaf)
        else leaf.size * leaf.dtype.itemsize
        for leaf in leaves
    )
    wide = options.quant or options.dtype == "float32"
    return dict(held=held, largest=(4 if wide else 2) * largest)


def source(options: argparse.Namespace) -> Path:
    """The directory or file that is loaded."""
    name = f"{options.archive}.npz" if options.archive else ""
    return options.directory / name


def measure(loader: str, options: argparse.Namespace) -> dict:
    """Seconds for one load, and the most memory the process ever held, imports included."""
    load = with_jaxtune if loader == "jaxtune" else with_transformers
    seconds = load(options)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return dict(seconds=seconds, peak=peak)


def with_jaxtune(options: argparse.Namespace) -> float:
    """Seconds."""
    import jax

    import jaxtune

    jax.devices()
    begun = time.perf_counter()
    jax.block_until_ready(jaxtune.load(source(options), options.dtype, options.quant))
    return time.perf_counter() - begun


def with_transformers(options: argparse.Namespace) -> float:
    """Seconds."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    given = dict(dtype=getattr(torch, options.dtype))
    if options.quant:
        given["device_map"] = "cpu"
        given["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=options.quant == "nf4-double",
        )
    begun = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(options.directory, **given)
    # Its weights are views of the file until they are used; ours are in memory.
    for weight in model.parameters():
        weight.detach().flatten().view(torch.int16).max()
    return time.perf_counter() - begun


def report(runs: dict, sizes: dict[str, int], options: argparse.Namespace) -> None:
    """The figures, and the bound that ours keep to."""
    held, largest = sizes["held"], sizes["largest"]
    print(f"{datetime.date.today()}, {cpu()}, {os.cpu_count()} cores")
    name = f"{options.quant} and {options.dtype}" if options.quant else options.dtype
    stacked = f"largest array at once{', as float32' if options.quant else ''}"
    print(f"{name}: parameters {held / 1e9:.2f} GB, {stacked} {largest / 1e9:.2f} GB")
    for loader, found in runs.items():
        seconds = [each["seconds"] for each in found[1:]]
        peak = max(each["peak"] for each in found)
        print(
            f"{loader:14} {statistics.median(seconds):6.2f} s "
            f"({min(seconds):.2f}-{max(seconds):.2f})   peak {peak / 1e9:.2f} GB"
        )
    bound = held + largest + 400e6
    peak = max(each["peak"] for each in runs["jaxtune"])
    print(f"bound: parameters + largest array + 0.4 GB = {bound / 1e9:.2f} GB", end=" ")
    print("kept" if peak <= bound else "BROKEN")
    sys.exit(peak > bound)


if __name__ == "__main__":
    main()
