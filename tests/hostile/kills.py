"""Runs that are stopped at random moments and resumed must end as an undisturbed one does."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.hostile.outcomes import CRASH, DIFFERENT, HANG, SUCCESS, TRACEBACK, Outcome, defect
from tests.hostile.report import Findings
from tests.hostile.world import HARDEST, ROOT, World

STEPS = 14
STOPS = 8  # in the life of one run
LEAVING = 5.0  # seconds within which a run must end after a signal
ENDING = 2.0  # seconds that an interpreter may still need after the last line of a run
WHOLE = 240.0  # seconds within which a run must end by itself
# Files and fields of the summary that say how long a run took and what it measured.
TIMED = ("README.md", "summary.json", "export.json", "run.json", ".lock")
# A stop may also leave another number of checkpoints, such as one of the step at which it came.
MEASURED = ("seconds", "tokens_per_second", "memory", "checkpoints")
# Exit codes after a signal; negative ones are of an interpreter that has not come to us yet.
LEFT = {
    signal.SIGKILL: (-9,),
    signal.SIGINT: (130, -2),
    signal.SIGTERM: (143, -15),
}


@dataclass(frozen=True)
class Undisturbed:
    """What an undisturbed run leaves, and how long it takes."""

    config: Path
    seconds: float
    files: dict[str, bytes]
    summary: dict[str, Any]

    def differs(self, workdir: Path) -> str:
        """Returns what a completed run has that is not as it should be, or "" if nothing is."""
        for name, content in self.files.items():
            if not (workdir / name).is_file():
                return f"{name} is missing"
            if (workdir / name).read_bytes() != content:
                return f"{name} differs"
        found = summary(workdir)
        return next(
            (f"summary: {key}" for key in self.summary if found[key] != self.summary[key]), ""
        )


def undisturbed(world: World) -> Undisturbed:
    """Runs the config twice, which must give the same, and returns what the runs leave."""
    config = world.place / "kills.py"
    config.write_text(HARDEST.format(steps=STEPS, base=str(world.base), rows=str(world.rows)))
    places = [world.place / "whole" / "run", world.place / "again" / "run"]
    for place in places:
        began = time.monotonic()
        process = launch(config, place)
        output, _ = process.communicate()
        if process.returncode:
            sys.exit(f"an undisturbed run fails:\n{output}")
        seconds = time.monotonic() - began
    found = Undisturbed(config, seconds, contents(places[0]), summary(places[0]))
    if difference := found.differs(places[1]):
        sys.exit(f"two undisturbed runs differ: {difference}")
    return found


def contents(workdir: Path) -> dict[str, bytes]:
    """Returns the files of a run that hold no timings: the others are compared by their fields."""
    return {
        str(path.relative_to(workdir)): path.read_bytes()
        for path in sorted(workdir.rglob("*"))
        if path.is_file() and "checkpoints" not in path.parts and path.name not in TIMED
    }


def summary(workdir: Path) -> dict[str, Any]:
    """Returns the summary of a run without timings, and with an equal name for its own folder."""
    found = json.loads((workdir / "summary.json").read_text().replace(str(workdir), "RUN"))
    return {key: value for key, value in found.items() if key not in MEASURED}


def launch(config: Path, workdir: Path, **more: Any) -> subprocess.Popen:
    """Starts a run as a user would, in a process group of its own."""
    command = [sys.executable, str(ROOT / "launch.py"), "--config", str(config)]
    return subprocess.Popen(
        [*command, "--workdir", str(workdir)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        **more,
    )


def run(
    world: World,
    whole: Undisturbed,
    findings: Findings,
    counts: Mapping[str, float],
    processes: int,
) -> None:
    """Stops and resumes runs; `counts` is how often each signal is sent, at most and in all."""
    plans = [
        (name, number)
        for name, count in counts.items()
        for number in range(max(1, round(count / STOPS)))
    ]
    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(lambda plan: life(world, whole, findings, *plan), plans))


def life(world: World, whole: Undisturbed, findings: Findings, name: str, number: int) -> None:
    """Starts one run again and again, stops it at random moments, and compares how it ends."""
    sent = signal.Signals[f"SIG{name}"]
    randomly = random.Random(f"{findings.seed} {name} {number}")
    workdir = world.place / "lives" / f"{name}-{number}" / "run"
    moments: list[float] = []
    for _ in range(STOPS):
        # Half of the moments are early ones, so that a life meets start-up and end alike.
        moments.append(round(randomly.uniform(0, whole.seconds * randomly.choice((0.5, 1.1))), 2))
        process = launch(whole.config, workdir)
        began = time.monotonic()
        outcome = stopped(process, sent, moments[-1])
        if outcome is None:
            break  # it had ended by itself
        findings.stops[name] += 1
        findings.note(f"stops: {name}", repr(moments), outcome, time.monotonic() - began)
    process = launch(whole.config, workdir)
    findings.note("resumed runs", f"{name} {moments}", completed(process, whole, workdir))
    shutil.rmtree(workdir.parent, ignore_errors=True)


def stopped(process: subprocess.Popen, sent: signal.Signals, moment: float) -> Outcome | None:
    """Sends a signal at a moment and judges how the run leaves; None if it had ended before."""
    try:
        process.communicate(timeout=moment)
        return None if process.returncode == 0 else ended(process, "")
    except subprocess.TimeoutExpired:
        process.send_signal(sent)
    began = time.monotonic()
    try:
        output, _ = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        return defect(
            HANG, f"SIG{sent.name} was ignored for 60 s:\n{output}", f"{sent.name} ignored"
        )
    taken = time.monotonic() - began
    if process.returncode == 0 and taken < ENDING:
        return Outcome(SUCCESS)  # it was about to end
    if problem := ended(process, output, LEFT[sent]):
        return problem
    if taken > LEAVING:
        return defect(
            HANG, f"it left {taken:.1f} s after the signal:\n{output}", f"{sent.name} late"
        )
    return Outcome(SUCCESS)


def ended(process: subprocess.Popen, output: str, codes: tuple[int, ...] = (0,)) -> Outcome | None:
    """Returns the defect of a process that ended with another code, or a traceback."""
    code = process.returncode
    if code not in codes:
        kind = CRASH if code < 0 else TRACEBACK
        return defect(kind, f"exit code {code}:\n{output}", f"exit code {code}")
    if "Traceback (most recent call last)" in output:
        return defect(TRACEBACK, output, "printed although the exit code is right")
    return None


def completed(process: subprocess.Popen, whole: Undisturbed, workdir: Path) -> Outcome:
    """Waits for a run to complete, and compares it with the undisturbed one."""
    try:
        output, _ = process.communicate(timeout=WHOLE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return defect(HANG, f"a resumed run did not end within {WHOLE:g} s", "resumed run")
    if problem := ended(process, output):
        return problem
    if difference := whole.differs(workdir):
        return defect(DIFFERENT, f"{difference}\n{output}", difference)
    return Outcome(SUCCESS)
