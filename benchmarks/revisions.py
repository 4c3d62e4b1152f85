"""Compares the training step of two jobs at another revision of this repository with that of today.

    python benchmarks/revisions.py REVISION [--rounds 7] [--job palette]

The jobs are those of `train_palette.py` and `train_totto.py`: Gemma 3 270M at its full size, with
random weights. Each revision runs in a process of its own, the other one from a temporary checkout,
and the processes take turns, one step each, on the same rows. It prints the ratio of the steps'
times, whether the losses are equal to the last bit, and the arrays of at least 1 MiB that only one
of the two compiled steps has. Run nothing else meanwhile.
"""

import argparse
import datetime
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import train_palette
import train_totto
import turns
from shapes import GEMMA_3_270M, cpu, write_checkpoint

ROOT = Path(__file__).parents[1]
JOBS = {"palette": train_palette.run_jaxtune, "totto": train_totto.run_jaxtune}
NOISE = 1.03  # largest ratio of medians that counts as no slower
ARRAY = re.compile(r"^\s*(?:ROOT )?\S+ = (pred|[a-z]+\d+)\[([\d,]+)\]", re.MULTILINE)
LARGE = 2**20  # bytes


def main() -> None:
    """Lets the revisions take turns at each job, and prints how they differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revision", help="a commit, tag or branch")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds (default: 7)")
    parser.add_argument("--job", choices=JOBS, action="append", help="repeatable (default: both)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        JOBS[options.child](options.directory, options.rounds + 1)
        return
    print(f"{datetime.date.today()}, {cpu()}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as scratch, checkout(options.revision, scratch) as other:
        write_checkpoint(Path(scratch) / "base", GEMMA_3_270M)
        kept = [report(job, other, Path(scratch), options) for job in options.job or JOBS]
    sys.exit(not all(kept))


@contextmanager
def checkout(revision: str, scratch: str) -> Iterator[Path]:
    """Yields a checkout of a revision, which is removed afterwards."""
    place = Path(scratch) / "other"
    tree = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*tree, "add", "--quiet", "--detach", str(place), revision], check=True)
    try:
        yield place
    finally:
        subprocess.run([*tree, "remove", "--force", str(place)], check=True)


def report(job: str, other: Path, scratch: Path, options: argparse.Namespace) -> bool:
    """Lets both revisions take turns at a job; prints how they differ; returns whether it is none.

    A step that is slower by at most `NOISE` counts as no slower.
    """
    trees = {"then": other, "now": ROOT}
    dumps = {name: scratch / f"{job}-{name}" for name in trees}
    line = [sys.executable, __file__, options.revision, "--child", job]
    line += ["--directory", str(scratch / "base"), "--rounds", str(options.rounds)]
    dump = "--xla_dump_hlo_as_text --xla_dump_hlo_module_re=.*compiled_step.* --xla_dump_to="
    running = {
        name: turns.start(line, PYTHONPATH=str(trees[name]), XLA_FLAGS=f"{dump}{dumps[name]}")
        for name in trees
    }
    found = turns.measure(running, options.rounds)
    then, now = ([step["seconds"] for step in found[name]["steps"][1:]] for name in trees)
    ratio = statistics.median(b / a for a, b in zip(then, now, strict=True))
    losses = [[step["loss"] for step in found[name]["steps"]] for name in trees]
    before, after = map(large_arrays, dumps.values())
    print(f"{job}: {statistics.median(now):.2f} s a step, {ratio:.3f} times that of before")
    print(f"  losses of {len(losses[0])} steps equal to the last bit: {losses[0] == losses[1]}")
    differ = f"only before: {dict(before - after)}, only now: {dict(after - before)}"
    print(f"  {after.total()} arrays of at least 1 MiB; {differ}")
    kept = ratio <= NOISE and losses[0] == losses[1] and not after - before
    print(f"  no slower (at most {NOISE}), equal losses, no new array: {verdict(kept)}", flush=True)
    return kept


def verdict(kept: bool) -> str:
    """Returns the word for a bound that holds or does not."""
    return "kept" if kept else "BROKEN"


def large_arrays(dump: Path) -> Counter[str]:
    """Returns how often the compiled step has each array of at least 1 MiB, by dtype and shape."""
    (file,) = dump.glob("*compiled_step*after_optimizations.txt")
    found = Counter()
    for dtype, shape in ARRAY.findall(file.read_text()):
        bits = 8 if dtype == "pred" else int(re.sub(r"\D", "", dtype))
        if math.prod(map(int, shape.split(","))) * bits // 8 >= LARGE:
            found[f"{dtype}[{shape}]"] += 1
    return found


if __name__ == "__main__":
    main()
