"""Runs that are killed and gone on with, beside one that is not: `python benchmarks/resume.py`.

Each run is killed at random moments until it ends, saves included. At the end its last checkpoint
(parameters, optimiser state, position) and its metrics.jsonl must be the other's, byte for byte.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax

from jaxtune.workdir.checkpoints import Checkpoints

ROOT = Path(__file__).parent.parent
PROGRAMS = os.environ.get("JAX_COMPILATION_CACHE_DIR")  # one that is kept, if there is any
CONFIG = """
def get_config():
    return dict(
        steps={steps},
        model=dict(path={base!r}),
        data=dict(source={rows!r}),
        trainable=dict(rank=4, dropout=0.1),
        optim=dict(lr=3e-3, weight_decay=0.1),
        schedule=dict(name="cosine", warmup=3),
        batch=dict(rows=4, accumulate=2, max_length=128, packing=True),
        eval=dict(holdout=8, every=5),
        checkpoint=dict(every=2),
        log=dict(every=3),
    )
"""


def main() -> None:
    """Compare so many killed runs with one that was left alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=24, help="of a run")
    parser.add_argument("--stops", type=int, default=6, help="of a run at most")
    parser.add_argument("--signal", choices=("KILL", "TERM"), default="KILL")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        killed = compare(Path(place), options)
    print(
        f"{options.runs} runs, stopped {killed['times']} times by SIG{options.signal} "
        f"({killed['saving']} of them while a checkpoint was being written): parameters, "
        "optimiser state and metrics.jsonl are those of one run that was left alone, to the bit"
    )


def compare(place: Path, options: argparse.Namespace) -> dict[str, int]:
    """Exit with 1 at the first run that differs; how often runs were stopped."""
    config, randomly = prepared(place, options.steps), random.Random(options.seed)
    finished(launch(config, place / "whole"))
    whole = contents(place / "whole")
    began = time.monotonic()  # once more, now that programs are compiled
    finished(launch(config, place / "again"))
    longest = time.monotonic() - began
    counts = {"times": 0, "saving": 0}
    for number in range(options.runs):
        workdir = place / f"run-{number}"
        times = until_done(config, workdir, options, longest, randomly, counts)
        if contents(workdir) != whole:
            print(f"run {number}, stopped {times} times, differs from the one left alone")
            sys.exit(1)
        print(f"run {number + 1} of {options.runs}: stopped {times} times, the same", flush=True)
        shutil.rmtree(workdir)
    return counts


def until_done(config, workdir, options, longest, randomly, counts) -> int:
    """Start a run again and again, stopping it at random moments, until it ends by itself."""
    for times in range(1000):
        process = launch(config, workdir)
        try:
            moment = randomly.uniform(0.2 * longest, longest)
            process.wait(moment if times < options.stops else None)
        except subprocess.TimeoutExpired:
            counts["times"] += 1
            process.send_signal(getattr(signal, f"SIG{options.signal}"))
            process.wait()
            saving = any((workdir / "checkpoints").glob("*tmp*"))
            counts["saving"] += saving
            continue
        finished(process)
        return times
    raise AssertionError("never ended")


def finished(process: subprocess.Popen) -> None:
    """Wait for a run; one that fails ends all."""
    said, _ = process.communicate()
    if process.returncode:
        sys.exit(f"a run ended with exit code {process.returncode}:\n{said}")


def launch(config: Path, workdir: Path) -> subprocess.Popen:
    """A run as a user starts it."""
    command = [sys.executable, str(ROOT / "launch.py"), "--config", str(config)]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": PROGRAMS or str(config.parent / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        [*command, "--workdir", str(workdir)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def contents(workdir: Path) -> tuple:
    """All that must be the same."""
    checkpoints = Checkpoints(workdir / "checkpoints")
    step = checkpoints.steps[-1]
    arrays, position = checkpoints.arrays(step)
    checkpoints.close()
    position["tally"].pop("seconds")
    values = {path: (value.dtype.str, value.tobytes()) for path, value in arrays.items()}
    adapter = (workdir / "export/adapter/adapter_model.safetensors").read_bytes()
    return step, values, position, (workdir / "metrics.jsonl").read_bytes(), adapter


def prepared(place: Path, steps: int) -> Path:
    """A tiny checkpoint, rows and a config."""
    rows = place / "rows.jsonl"
    words = ("sea", "sand", "dusk", "moss", "rust", "snow", "night", "clay")
    rows.write_text(
        "".join(
            json.dumps({"prefix": " ".join(words[: 1 + n % 8]), "suffix": f" {words[n % 8]}"})
            + "\n"
            for n in range(60)
        )
    )
    config = place / "run.py"
    base = str(ROOT / "configs/tiny/base")
    config.write_text(CONFIG.format(steps=steps, base=base, rows=str(rows)))
    return config


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main()
