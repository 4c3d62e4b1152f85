"""Compares runs over several devices and processes with the same run on one device.

    python benchmarks/hosts.py [--only lora full qlora paligemma resumed killed]

Every run goes through the command line, on virtual CPU devices; processes meet over loopback. Each
line of the table has a bound that must hold, and says BROKEN where it does not:

- the losses of all steps differ by at most 1e-5, relative to those of one device, on 8 devices of
  one process and on 4 devices of each of 2 processes; the answers to held-out rows are the same,
  token for token;
- so they are for a run that goes on with fewer devices, or with fewer processes;
- if one of two processes is killed, the other ends with one message within a minute, and the run
  that both resume equals an undisturbed one, bit for bit.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from resume import contents

ROOT = Path(__file__).parent.parent
PROGRAMS = os.environ.get("JAX_COMPILATION_CACHE_DIR")  # persistent compilation cache, if any
TEXT, PICTURES = ROOT / "configs/tiny", ROOT / "configs/tiny_pictures"
LIMIT = 1e-5  # largest relative difference of losses
SOON = 60.0  # seconds within which a process ends after another was killed
WORDS = ("sea", "sand", "dusk", "moss", "rust", "snow", "night", "clay")
KINDS = {
    "lora": dict(trainable=dict(rank=4)),
    "full": dict(trainable=dict(kind="full"), optim=dict(lr=2e-4)),
    "qlora": dict(trainable=dict(rank=4), model=dict(path=f"{TEXT}/base", quant="nf4-double")),
    "paligemma": dict(
        model=dict(path=f"{PICTURES}/base/paligemma-tiny-pt-70.f16.npz", dtype="float16"),
        data=dict(
            source=f"{PICTURES}/train.jsonl",
            task="caption",
            tokenizer=f"{PICTURES}/base/paligemma_tokenizer.model",
        ),
        trainable=dict(kind="attention"),
        batch=dict(rows=8, max_length=64),
    ),
}
# Meshes of 8 devices, by kind; by default, all devices are on `fsdp`.
MESHES = {
    "full": dict(data=2, fsdp=4),
    "qlora": dict(data=2, fsdp=2, tensor=2),
    "paligemma": dict(data=2, fsdp=4),
}


@dataclass(frozen=True)
class Layout:
    """Processes of a run, and the devices of each."""

    processes: int
    devices: int

    def __str__(self) -> str:
        if self.processes == 1:
            return "1 device" if self.devices == 1 else f"{self.devices} devices"
        return f"{self.processes} processes × {self.devices}"


ONE, EIGHT, FOUR, SPREAD = Layout(1, 1), Layout(1, 8), Layout(1, 4), Layout(2, 4)


class Broken(Exception):
    """A run that failed."""


class Bench:
    """Runs in a directory, and the table of what they show."""

    def __init__(self, place: Path, steps: int):
        self.place, self.steps, self.kept = place, steps, True
        rows = [
            {"prefix": " ".join(WORDS[: 1 + n % 8]), "suffix": f" {WORDS[n % 8]}"}
            for n in range(72)
        ]
        (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def config(self, kind: str) -> Path:
        """Writes the config of a kind of run; returns its path."""
        values = {
            "steps": self.steps,
            "model": {"path": f"{TEXT}/base"},
            "data": {"source": f"{self.place}/rows.jsonl"},
            "optim": {"lr": 1e-3},
            "schedule": {"name": "constant"},
            "batch": {"rows": 8, "max_length": 32},
            "eval": {"holdout": 8, "answers": 4, "every": self.steps},
            "generate": {"max_new_tokens": 12, "batch": 4},
            "checkpoint": {"every": 3},
            "log": {"every": 1},
            **KINDS[kind],
        }
        file = self.place / f"{kind}.py"
        file.write_text(f"def get_config():\n    return {values!r}\n")
        return file

    def started(self, kind: str, name: str, layout: Layout, *more: str) -> list[subprocess.Popen]:
        """Starts the processes of a run."""
        arguments = ["--config", str(self.config(kind)), "--workdir", str(self.place / name)]
        if layout.processes * layout.devices == 8:
            sizes = MESHES.get(kind, {}).items()
            arguments += [f"--config.mesh.{axis}={size}" for axis, size in sizes]
        port = free_port()
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} "
            f"--xla_force_host_platform_device_count={layout.devices}",
            "JAX_COMPILATION_CACHE_DIR": PROGRAMS or str(self.place / "programs"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        found = []
        for index in range(layout.processes):
            joining = [f"--coordinator=127.0.0.1:{port}", f"--process-count={layout.processes}"]
            joining += [f"--process-index={index}"]
            command = [sys.executable, str(ROOT / "launch.py"), "train", "--no-plan"]
            command += [*arguments, *more]
            command += joining if layout.processes > 1 else []
            log = (self.place / f"{name}.{index}.log").open("w")
            found.append(
                subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
            )
        return found

    def run(self, kind: str, name: str, layout: Layout, *more: str) -> Path:
        """Runs to the end, and returns the workdir; raises Broken if a process failed."""
        began = time.monotonic()
        for index, process in enumerate(self.started(kind, name, layout, *more)):
            if process.wait():
                log = (self.place / f"{name}.{index}.log").read_text()[-2000:]
                raise Broken(f"{name} failed with exit code {process.returncode}:\n{log}")
        print(f"  {name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        return self.place / name

    def line(self, what: str, found: str, kept: bool) -> None:
        """Prints a line of the table."""
        self.kept = self.kept and kept
        print(f"{what:<44}{found:<52}{'kept' if kept else 'BROKEN'}", flush=True)

    def whole(self, kind: str, layout: Layout) -> Path:
        """Returns the workdir of an undisturbed run, which is done once."""
        name = f"{kind}-{layout.processes}x{layout.devices}"
        there = self.place / name
        return there if (there / "summary.json").exists() else self.run(kind, name, layout)

    def compared(self, what: str, reference: Path, other: Path) -> None:
        """Prints the differences of losses, and of answers, between two runs."""
        ours, theirs = losses(reference), losses(other)
        apart = max(abs(a - b) / abs(a) for a, b in zip(ours, theirs, strict=True))
        expected, found = answers(reference), answers(other)
        alike = sum(a == b for a, b in zip(expected, found, strict=True))
        self.line(
            what,
            f"losses {apart:.1e} apart over {len(ours)} steps, {alike} of {len(found)} answers",
            apart <= LIMIT and alike == len(found),
        )


def layouts(bench: Bench, kind: str) -> None:
    """Compares the layouts of one kind of run."""
    alone = bench.whole(kind, ONE)
    for layout in (EIGHT, SPREAD):
        bench.compared(f"{kind}: {layout}", alone, bench.whole(kind, layout))


def resumed(bench: Bench) -> None:
    """Compares runs that go on with fewer devices or processes with one that does not."""
    alone, third = bench.whole("lora", ONE), bench.steps // 3
    for parts in ((EIGHT, FOUR, ONE), (SPREAD, ONE)):
        name = "resumed-" + "-".join(f"{each.processes}x{each.devices}" for each in parts)
        for number, layout in enumerate(parts, 1):
            steps = bench.steps if number == len(parts) else third * number
            more = ("--accept-changes", f"--config.steps={steps}")
            # Answers are given after the last step alone, as in the undisturbed run.
            other = bench.run("lora", name, layout, *more, f"--config.eval.every={bench.steps}")
        bench.compared(" -> ".join(map(str, parts)), alone, other)


def killed(bench: Bench) -> None:
    """Kills one of two processes, each in turn, and compares the resumed run with a whole one."""
    whole = bench.whole("lora", SPREAD)
    for victim in (0, 1):
        name = f"killed-{victim}"
        processes = bench.started("lora", name, SPREAD)
        wait_for((bench.place / name / "checkpoints/6").exists, processes)
        processes[victim].send_signal(signal.SIGKILL)
        began = time.monotonic()
        other = processes[1 - victim]
        other.wait()
        took = time.monotonic() - began
        log = (bench.place / f"{name}.{1 - victim}.log").read_text()
        said = [line for line in log.splitlines() if line.startswith("error: ")]
        clear = len(said) == 1 and f"process {victim} of 2" in said[0] and "Traceback" not in log
        clear = clear and other.returncode == 75 and "*** " not in log
        what = f"process {victim} of 2 killed: the other"
        found = f"ends after {took:.1f} s, exit code {other.returncode}, {len(said)} message"
        bench.line(what, found, clear and took < SOON)
        print(f"  {said[0] if said else log[-500:]}", file=sys.stderr, flush=True)
        bench.run("lora", name, SPREAD)
        same = contents(whole) == contents(bench.place / name)
        bench.line("  both resume", "checkpoint, metrics and adapter, bit for bit", same)


def wait_for(done: Callable[[], bool], processes: Sequence[subprocess.Popen]) -> None:
    """Waits until something is done; raises Broken if a process ends before."""
    while not done():
        if any(process.poll() is not None for process in processes):
            raise Broken("a process ended early: " + ", ".join(str(p.args) for p in processes))
        time.sleep(0.1)


def entries(workdir: Path, kind: str) -> Iterator[dict]:
    """Yields the entries of one kind in metrics.jsonl."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return (entry for entry in map(json.loads, lines) if entry["kind"] == kind)


def losses(workdir: Path) -> list[float]:
    """Returns the loss of each step."""
    return [entry["loss"] for entry in entries(workdir, "train")]


def answers(workdir: Path) -> list[tuple]:
    """Returns the answers after the last step: row, text and number of tokens."""
    last = max((workdir / "eval").glob("step-*/predictions.jsonl"))
    lines = map(json.loads, last.read_text().splitlines())
    return [(line["row"], line["answer"], line["tokens"]) for line in lines]


def free_port() -> int:
    """Returns a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> None:
    """Prints the table; exits with 1 if a bound does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = [*KINDS, "resumed", "killed"]
    parser.add_argument("--only", nargs="+", choices=known, default=known, help="parts to run")
    parser.add_argument("--steps", type=int, default=20, help="steps per run (default: 20)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        bench = Bench(Path(place), options.steps)
        for name in options.only:
            try:
                if name in KINDS:
                    layouts(bench, name)
                else:
                    {"resumed": resumed, "killed": killed}[name](bench)
            except Broken as problem:
                bench.line(name, "failed", False)
                print(problem, file=sys.stderr)
    sys.exit(0 if bench.kept else 1)


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    main()
