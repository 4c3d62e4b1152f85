"""Kills and resumes runs, and compares them with an uninterrupted one.

    python benchmarks/resume.py [--runs 20] [--base DIR]

Each run is killed at random moments, also during saves, and resumed until it completes. Its last
checkpoint (parameters, optimiser state, position) and its metrics.jsonl must then equal those of
the uninterrupted run, byte for byte.
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
PROGRAMS = os.environ.get("JAX_COMPILATION_CACHE_DIR")  # persistent compilation cache, if any
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
    """Compares killed and resumed runs with an uninterrupted one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--runs", type=int, default=20, help="number of runs to kill (default: 20)")
    add("--steps", type=int, default=24, help="steps per run (default: 24)")
    add("--stops", type=int, default=6, help="maximum number of kills per run (default: 6)")
    signals = ("KILL", "TERM")
    add("--signal", choices=signals, default="KILL", help="signal to send (default: KILL)")
    base = ROOT / "configs/tiny/base"
    add("--base", type=Path, default=base, help="checkpoint of the base (default: the bundled one)")
    add("--seed", type=int, default=0, help="seed of the random moments (default: 0)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        killed = compare(Path(place), options)
    print(
        f"{options.runs} runs, stopped {killed['times']} times by SIG{options.signal} "
        f"({killed['saving']} of them while a checkpoint was being written): parameters, optimiser "
        "state and metrics.jsonl are identical to those of an uninterrupted run, bit for bit"
    )


def compare(place: Path, options: argparse.Namespace) -> dict[str, int]:
    """Returns how often runs were stopped; exits with 1 at the first run that differs."""
    config = prepared(place, options.base, options.steps)
    randomly = random.Random(options.seed)
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
            print(
                f"run {number + 1} of {options.runs}: stopped {times} times, differs from the "
                "uninterrupted run"
            )
            sys.exit(1)
        print(f"run {number + 1} of {options.runs}: stopped {times} times, identical", flush=True)
        shutil.rmtree(workdir)
    return counts


def until_done(config, workdir, options, longest, randomly, counts) -> int:
    """Restarts a run, stopping it at random moments, until it completes; returns the stops."""
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
    raise AssertionError("the run did not complete within 1000 starts")


def finished(process: subprocess.Popen) -> None:
    """Waits for a run; exits with its output if it failed."""
    output, _ = process.communicate()
    if process.returncode:
        sys.exit(f"a run failed with exit code {process.returncode}:\n{output}")


def launch(config: Path, workdir: Path) -> subprocess.Popen:
    """Starts a run through the command line, as a user would."""
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
    """Returns everything in a workdir that must be identical between runs."""
    checkpoints = Checkpoints(workdir / "checkpoints")
    step = checkpoints.steps[-1]
    arrays, position = checkpoints.arrays(step)
    checkpoints.close()
    # What evaluations found is in metrics.jsonl; one that a signal broke off came after the save.
    for name in ("seconds", "owed", "best_loss", "best_score", "best_step", "worse"):
        position["tally"].pop(name)
    values = {path: (value.dtype.str, value.tobytes()) for path, value in arrays.items()}
    adapter = (workdir / "export/adapter/adapter_model.safetensors").read_bytes()
    return step, values, position, (workdir / "metrics.jsonl").read_bytes(), adapter


def prepared(place: Path, base: Path, steps: int) -> Path:
    """Writes rows and a config for a base; returns the config's path."""
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
    config.write_text(CONFIG.format(steps=steps, base=str(base), rows=str(rows)))
    return config


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main()
