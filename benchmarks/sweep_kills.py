"""Kills the workers of a sweep at random moments, and looks for trials that are lost or repeated.

    python benchmarks/sweep_kills.py [--sampler tpe grid] [--kills 10] [--workers 3] [--storage URL]

Three processes work on 24 trials of the palette demo, with shorter runs; each is killed by SIGKILL
and started again until the kills are spent. Every trial must then have ended once, with as many
steps and log lines as its end asks for. With a grid, whose trials run one by one, the leaderboard
must be that of three processes that were left alone, to the last digit, but for the seconds. With
TPE, pruning and populations, which trials there are depends on the order of results: what is
recorded of each must be what its own log says. --storage is an empty database that holds the
studies, such as postgresql://user@host/sweeps; by default, a file in the workdir does.
"""

import argparse
import datetime
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from shapes import cpu

ROOT = Path(__file__).parents[1]
TRIALS, STEPS, EVERY = 24, 16, 4
SAME = 1e-5  # relative; a trial that resumes in another population has other last digits
RATES = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2]
SPACE = """dict(
        trials={trials},
        sampler="tpe",
        pruner="median",
        space={{"optim.lr": log(1e-5, 3e-2), "trainable.rank": [4, 8, 16], "seed": [0, 1]}},
    )"""
GRID = """dict(space={{"optim.lr": {rates}, "trainable.rank": [4, 8], "seed": [0, 1]}})"""
CONFIG = """
from jaxtune.runs.sweep.space import log


def get_config():
    return dict(
        steps={steps},
        model=dict(path="configs/tiny/base"),
        data=dict(source="configs/tiny/palette.csv", task="palette"),
        batch=dict(rows=8, max_length=128),
        eval=dict(holdout=16, every={every}),
        checkpoint=dict(every=1, keep=1),
        log=dict(every=1),
    )


def get_sweep():
    return {sweep}
"""
SAMPLERS = {"tpe": SPACE.format(trials=TRIALS), "grid": GRID.format(rates=RATES)}
MORE = {"tpe": ["--together", "4"], "grid": ["--together", "1"]}


def main() -> None:
    """Runs the campaigns; exits with 1 if a sweep lost, repeated or misrecorded a trial."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--sampler", nargs="+", choices=list(SAMPLERS), default=list(SAMPLERS))
    add("--kills", type=int, default=10, help="kills in each campaign (default: 10)")
    add("--workers", type=int, default=3, help="processes at a time (default: 3)")
    add("--storage", help="URL of an empty database for the studies (default: files)")
    add("--seed", type=int, default=0, help="seed of the random moments (default: 0)")
    options = parser.parse_args()
    print(f"{datetime.date.today()}, {cpu()}, {os.cpu_count()} cores")
    problems = 0
    for sampler in options.sampler:
        with tempfile.TemporaryDirectory() as place:
            found = list(campaign(Path(place), sampler, options))
        problems += len(found)
        print("\n".join(found) or f"{sampler}: no trial lost, repeated or misrecorded", flush=True)
    sys.exit(bool(problems))


def campaign(place: Path, sampler: str, options: argparse.Namespace):
    """Runs a sweep whose workers are killed, and yields what is wrong with its results."""
    config = place / "config.py"
    config.write_text(CONFIG.format(steps=STEPS, every=EVERY, sweep=SAMPLERS[sampler]))
    begun = time.monotonic()
    killed, takeovers = disturbed(config, place / "killed", sampler, options)
    board = leaderboard(place / "killed")
    states = Counter(each["state"] for each in board)
    print(
        f"{sampler}: {killed} workers killed in {time.monotonic() - begun:.0f} s, {takeovers} runs "
        f"resumed; {', '.join(f'{count} {state}' for state, count in states.items())}"
    )
    yield from problems(place / "killed", board)
    if sampler == "grid":
        left_alone(config, place / "alone", sampler, options)
        if timeless(board) != timeless(leaderboard(place / "alone")):
            yield "grid: the leaderboard differs from that of workers that were left alone"


def disturbed(config: Path, workdir: Path, sampler: str, options) -> tuple[int, int]:
    """Lets workers finish a sweep, killing some; returns the kills, and how many runs resumed."""
    randomly, kills = random.Random(options.seed), options.kills
    line = command(config, workdir, sampler, options.storage)
    workers = [launch(line, place=config.parent) for _ in range(options.workers)]
    while not any(workdir.glob("trials/*/metrics.jsonl")):
        time.sleep(0.1)
    while any(worker.poll() is None for worker in workers):
        if failed := [worker.returncode for worker in workers if worker.poll()]:
            sys.exit(f"a worker failed with exit code {failed[0]}")
        if not kills:
            time.sleep(0.2)
            continue
        time.sleep(randomly.uniform(1, 8))
        index = randomly.randrange(len(workers))
        if workers[index].poll() is None:
            workers[index].kill()
            workers[index].wait()
            kills -= 1
            workers[index] = launch(line, place=config.parent)
    told = (log.read_text() for log in workdir.glob("trials/*/output.log"))
    return options.kills - kills, sum(text.count("resuming from step") for text in told)


def left_alone(config: Path, workdir: Path, sampler: str, options) -> None:
    """Lets workers finish a sweep without a disturbance."""
    line = command(config, workdir, sampler, options.storage)
    workers = [launch(line, place=config.parent) for _ in range(options.workers)]
    if any(worker.wait() for worker in workers):
        sys.exit("a worker failed")


def command(config: Path, workdir: Path, sampler: str, storage: str | None) -> list[Any]:
    """Returns the command line of a worker, as a user would type it."""
    line = [sys.executable, "launch.py", "sweep", "--config", config, "--workdir", workdir]
    line += MORE[sampler]
    named = ["--storage", storage, "--study", f"{sampler}-{workdir.name}"]
    return [*line, *named] if storage else line


def launch(line: list[Any], place: Path) -> subprocess.Popen:
    """Starts a worker, which keeps compiled programs in `place`."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(place / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(line, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)


def leaderboard(workdir: Path) -> list[dict[str, Any]]:
    """Returns the entries of leaderboard.json."""
    return json.loads((workdir / "leaderboard.json").read_text())


def timeless(board: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns entries without their seconds."""
    return [{name: each[name] for name in each if name != "seconds"} for each in board]


def problems(workdir: Path, board: list[dict[str, Any]]):
    """Yields what is wrong: trials that are missing, twice there, or not as their logs say."""
    numbers = sorted(each["number"] for each in board)
    if numbers != list(range(TRIALS)):
        yield f"trials on the leaderboard: {numbers}"
    for each in board:
        place = workdir / each["directory"]
        lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
        steps = [line["step"] for line in lines if line["kind"] == "train"]
        losses = [line["loss"] for line in lines if line["kind"] == "eval"]
        where = f"trial {each['number']}"
        if each["state"] not in ("complete", "pruned"):
            yield f"{where}: {each['state']}: {each.get('reason')}"
            continue
        if steps != list(range(1, each["steps"] + 1)):
            yield f"{where}: its log has the steps {steps}, expected each of {each['steps']} once"
        if (each["state"] == "complete") != (each["steps"] == STEPS):
            yield f"{where}: {each['state']} after {each['steps']} steps"
        if abs(each["metric"] / min(losses[1:]) - 1) > SAME:
            yield f"{where}: metric {each['metric']}, but its log says {min(losses[1:])}"


if __name__ == "__main__":
    main()
