"""Measures how long steps wait for pictures, which threads decode ahead while all cores compute.

A step here is about `--step` seconds of matrix products on every core, like a real step on a CPU;
with an accelerator the cores would be free to decode.
"""

import argparse
import datetime
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from shapes import cpu

from jaxtune.data.examples import RowEncoder, columns
from jaxtune.data.images import Pictures
from jaxtune.data.loader import Loader
from jaxtune.data.sources import open_source
from jaxtune.data.survey import survey
from jaxtune.data.tokenizer import Tokenizer

BATCH, STEPS, SIDES = 8, 12, (480, 640)
TOKENIZER = Path(__file__).parent.parent / "configs" / "tiny" / "base"
LIMIT = 0.02  # claimed maximum of the waiting time, as a share of a step's time


def main() -> None:
    """Takes steps, and reports how long they waited for their batches."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--step", type=float, default=0.5, help="seconds per step (default: 0.5)")
    parser.add_argument("--augment", action="store_true", help="also crop, flip and recolour")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        rows = write_rows(Path(scratch))
        loader = batches(rows, options.augment)
        next(loader)  # TensorFlow is imported with the first picture
        waits, spent = timed(loader, calibrated(options.step))
        loader.close()
    wait, step = statistics.median(waits), statistics.median(spent)
    print(f"{datetime.date.today()}, {cpu()}, {os.cpu_count()} cores")
    print(
        f"batches of {BATCH} JPEGs of {SIDES[1]} × {SIDES[0]}, resized to 224: a step of "
        f"{step:.2f} s waits {1e3 * wait:.1f} ms (median), {1e3 * max(waits):.1f} ms (maximum)"
    )
    kept = wait <= LIMIT * step
    print(f"median wait {wait / step:.2%} of a step, limit {LIMIT:.0%}: {verdict(kept)}")
    sys.exit(not kept)


def verdict(kept: bool) -> str:
    """Returns the printed result of a check."""
    return "kept" if kept else "BROKEN"


def write_rows(directory: Path) -> Path:
    """Writes photograph-like pictures and a file with a row for each; returns the file."""
    import tensorflow as tf

    random, records = np.random.default_rng(0), []
    for number in range(32):
        coarse = random.integers(0, 255, (12, 16, 3)).astype(np.uint8)
        fine = tf.image.resize(coarse, SIDES, "bicubic") + random.normal(0, 8, (*SIDES, 3))
        pixels = tf.saturate_cast(fine, tf.uint8)
        (directory / f"{number}.jpg").write_bytes(tf.io.encode_jpeg(pixels).numpy())
        records.append({"image": f"{number}.jpg", "prefix": "caption en\n", "suffix": "a blur"})
    file = directory / "rows.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def batches(rows: Path, augment: bool) -> Loader:
    """Returns a loader of these rows, as `train` makes it."""
    tokenizer = Tokenizer.open(TOKENIZER)
    source = open_source(str(rows), split="train", subset=None, revision=None)
    pictures = Pictures(size=224, tokens=256, token=257_152)
    encoder = RowEncoder(tokenizer, columns(), 512, full_prefix=True, pictures=pictures)
    found = survey(source, encoder, malformed="fail", workers=1)
    steps = (("crop", 0.8), ("flip", 0.5), ("colour", 0.2)) if augment else ()
    return Loader(source, encoder, found, batch=BATCH, seed=0, epochs=None, augment=steps)


def calibrated(seconds: float):
    """Returns a computation on all cores that takes about this many seconds."""
    matrix = jnp.ones((1024, 1024))

    @jax.jit
    def busy(rounds):
        return jax.lax.fori_loop(0, rounds, lambda _, x: (x @ matrix) * 1e-3, matrix)

    jax.block_until_ready(busy(1))
    begun = time.monotonic()
    jax.block_until_ready(busy(20))
    rounds = max(1, round(seconds * 20 / (time.monotonic() - begun)))
    return lambda: jax.block_until_ready(busy(rounds))


def timed(loader: Loader, step) -> tuple[list[float], list[float]]:
    """Returns the seconds that each step waited for its batch, and that it took."""
    waits, spent = [], []
    for _ in range(STEPS):
        begun = time.monotonic()
        next(loader)
        waited = time.monotonic()
        step()
        waits.append(waited - begun)
        spent.append(time.monotonic() - waited)
    return waits, spent


if __name__ == "__main__":
    main()
