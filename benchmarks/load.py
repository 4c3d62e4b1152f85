"""Compares the loading time and peak memory of a checkpoint with transformers.

    python benchmarks/load.py [--directory DIR] [--repeat 3] [--dtype float32] [--quant nf4]

A random checkpoint of Llama-3.2-1B's size, in bfloat16, is written to DIR (a temporary directory by
default, 2.5 GB) unless it exists already. Each load runs in its own process, and the loaders take
turns. With `--quant`, linear maps are quantised while they are read; transformers does so with
bitsandbytes, which supports only the nf4 kinds.

    python benchmarks/load.py --archive stored --dtype float16

loads PaliGemma 3B's shapes from an .npz in big_vision's layout, which transformers cannot read,
with the arrays uncompressed ("stored") or compressed ("deflated"). The arrays are zeros, so the
file takes no space on disk, and the time to decompress it is not representative.
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
CHECKPOINT = "checkpoint"  # child that writes it: a process inherits its parent's peak memory
KINDS = ("nf4", "nf4-double", "int4", "int8")
ARCHIVES = {"stored": zipfile.ZIP_STORED, "deflated": zipfile.ZIP_DEFLATED}


def main() -> None:
    """Measures every loader and prints a table."""
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
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--directory", type=Path, help="where to write the checkpoint (default: temporary)")
    add("--repeat", type=int, default=3, help="timed loads per loader (default: 3)")
    dtypes = ("bfloat16", "float16", "float32")
    add("--dtype", choices=dtypes, default="bfloat16", help="dtype to load (default: bfloat16)")
    add("--quant", choices=KINDS, help="quantise the linear maps while loading")
    add("--archive", choices=ARCHIVES, help="load an .npz of PaliGemma 3B's shapes instead")
    parser.add_argument("--child", choices=(*LOADERS, CHECKPOINT), help=argparse.SUPPRESS)
    return parser.parse_args()


def in_process(child: str, options: argparse.Namespace) -> dict:
    """Runs a child in a new process and returns its measurements."""
    command = [sys.executable, __file__, "--child", child, "--dtype", options.dtype]
    command += ["--directory", str(options.directory)]
    command += ["--quant", options.quant] if options.quant else []
    command += ["--archive", options.archive] if options.archive else []
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def prepared(options: argparse.Namespace) -> dict[str, int]:
    """Writes the checkpoint; returns the bytes of all loaded leaves, and of the largest array read.

    An array that is quantised is read as float32.
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
    """Returns the directory or file to load."""
    name = f"{options.archive}.npz" if options.archive else ""
    return options.directory / name


def measure(loader: str, options: argparse.Namespace) -> dict:
    """Returns the seconds of one load, and the peak memory of the process, imports included."""
    load = with_jaxtune if loader == "jaxtune" else with_transformers
    seconds = load(options)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return dict(seconds=seconds, peak=peak)


def with_jaxtune(options: argparse.Namespace) -> float:
    """Returns the seconds that jaxtune takes to load."""
    import jax

    import jaxtune

    jax.devices()
    begun = time.perf_counter()
    jax.block_until_ready(jaxtune.load(source(options), options.dtype, options.quant))
    return time.perf_counter() - begun


def with_transformers(options: argparse.Namespace) -> float:
    """Returns the seconds that transformers takes to load."""
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
    """Prints the measurements and checks jaxtune's peak memory against its limit."""
    held, largest = sizes["held"], sizes["largest"]
    print(f"{datetime.date.today()}, {cpu()}, {os.cpu_count()} cores")
    name = f"{options.quant} and {options.dtype}" if options.quant else options.dtype
    stacked = f"largest array read{', as float32' if options.quant else ''}"
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
    print(f"limit: parameters + largest array + 0.4 GB = {bound / 1e9:.2f} GB:", end=" ")
    print("kept" if peak <= bound else "BROKEN")
    sys.exit(peak > bound)


if __name__ == "__main__":
    main()
