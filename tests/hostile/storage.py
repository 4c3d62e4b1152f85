"""Faults of storage under a run: full, limited, read-only, vanishing, slow, and torn files."""

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.hostile.kills import Undisturbed, completed, launch
from tests.hostile.outcomes import HANG, MESSAGE, SUCCESS, Exited, Outcome, defect, of_command
from tests.hostile.report import Findings
from tests.hostile.world import World

# A patch of the interpreter that makes every fsync and rename slow.
SLOW = """
import os, time
def slow(real):
    return lambda *given, **more: (time.sleep(0.02), real(*given, **more))[1]
os.fsync, os.replace, os.rename = map(slow, (os.fsync, os.replace, os.rename))
"""


def run(world: World, whole: Undisturbed, findings: Findings, scale: float, processes: int) -> None:
    """Tries every fault several times."""
    faults = {
        limited: 5,
        torn: 7,
        vanishing: 3,
        vanishing_checkpoints: 2,
        slow: 1,
        **({full: 5, read_only: 3} if mountable(world) else {}),
    }
    if full not in faults:
        print("no full and no read-only disks: this user may not mount a tmpfs")
    plans = [
        (fault, number)
        for fault, count in faults.items()
        for number in range(max(1, round(count * scale)))
    ]
    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(lambda plan: tried(world, whole, findings, *plan), plans))


def tried(
    world: World, whole: Undisturbed, findings: Findings, fault: Callable, number: int
) -> None:
    """Runs into a fault; without it, the same command must then complete the run."""
    name = fault.__name__.replace("_", " ")
    randomly = random.Random(f"{findings.seed} {name} {number}")
    place = world.place / "faults" / f"{fault.__name__}-{number}"
    place.mkdir(parents=True)
    began = time.monotonic()
    try:
        outcome, value = fault(whole, place, randomly)
        findings.note(f"storage: {name}", value, outcome, time.monotonic() - began)
        after = completed(launch(whole.config, place / "run"), whole, place / "run")
        findings.note("resumed runs", f"{name}: {value}", after)
    finally:
        unmounted(place)
        shutil.rmtree(place, ignore_errors=True)


def failed(process: subprocess.Popen, seconds: float = 120) -> Outcome:
    """Waits for a run under a fault: it must complete, or end with one clean message."""
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        return defect(HANG, f"no end within {seconds:g} s:\n{output}", "storage")
    if process.returncode == 0:
        return Outcome(SUCCESS)
    found = of_command(Exited(process.returncode, output))
    if found.kind == MESSAGE and output.count("error: ") != 1:
        return defect("words", f"not one message:\n{output}", "several messages of a full disk")
    return found


def limited(whole: Undisturbed, place: Path, randomly: random.Random) -> tuple[Outcome, str]:
    """A limit on the size of files, as by `ulimit -f`."""
    most = randomly.choice([0, 500, 2_000, 10_000, 40_000, 100_000, 200_000])

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    # Compiled programs are not the user's: they go to a folder of their own, without a limit.
    return failed(launch(whole.config, place / "run", preexec_fn=limit)), f"{most} bytes"


def full(whole: Undisturbed, place: Path, randomly: random.Random) -> tuple[Outcome, str]:
    """A disk that fills up; afterwards there is room again."""
    size = randomly.choice([0, 4, 40, 100, 200, 300, 500, 800, 1_200]) or 4
    mounted(place, f"size={size}k")
    outcome = failed(launch(whole.config, place / "run"))
    mounted(place, "remount,size=200m")
    return outcome, f"{size} kB"


def read_only(whole: Undisturbed, place: Path, randomly: random.Random) -> tuple[Outcome, str]:
    """A disk that becomes read-only at a random moment, or was from the start."""
    moment = randomly.choice([0.0, randomly.uniform(0, whole.seconds)])
    mounted(place, "size=200m")
    if not moment:
        mounted(place, "remount,ro")
    process = launch(whole.config, place / "run")
    if moment:
        wait(process, moment)
        # A file that is open for writing keeps a disk writable: then it is tried again.
        for _ in range(200):
            if mounted(place, "remount,ro", needed=False) or process.poll() is not None:
                break
            time.sleep(0.02)
    outcome = failed(process)
    mounted(place, "remount,rw")
    return outcome, f"after {moment:.2f} s"


def vanishing(whole: Undisturbed, place: Path, randomly: random.Random) -> tuple[Outcome, str]:
    """The directory of the run is removed at a random moment."""
    return removed(whole, place, randomly, "")


def vanishing_checkpoints(
    whole: Undisturbed, place: Path, randomly: random.Random
) -> tuple[Outcome, str]:
    """The folder of its checkpoints is removed."""
    return removed(whole, place, randomly, "checkpoints")


def removed(
    whole: Undisturbed, place: Path, randomly: random.Random, name: str
) -> tuple[Outcome, str]:
    """Removes a folder of a run at a random moment of its life."""
    moment = randomly.uniform(0.3, 0.9) * whole.seconds
    process = launch(whole.config, place / "run")
    wait(process, moment)
    # A rename takes the folder in one moment, and shows whether the run had ended before it.
    taken = place / "taken"
    with contextlib.suppress(FileNotFoundError):
        (place / "run" / name).rename(taken)
    ended = (taken / "summary.json").exists() or (place / "run/summary.json").exists()
    shutil.rmtree(taken, ignore_errors=True)
    outcome = failed(process)
    if not (name or ended or (place / "run/summary.json").exists()) and outcome.kind == SUCCESS:
        outcome = defect("silent", "exit code 0, but the run's directory is gone", "vanished")
    shutil.rmtree(place / "run", ignore_errors=True)  # what is left of it is not resumable
    return outcome, f"{name or 'all'} after {moment:.2f} s"


def slow(whole: Undisturbed, place: Path, randomly: random.Random) -> tuple[Outcome, str]:
    """Every sync and every rename takes its time."""
    (place / "patch").mkdir()
    (place / "patch/sitecustomize.py").write_text(SLOW)
    environment = os.environ | {"PYTHONPATH": str(place / "patch")}
    process = launch(whole.config, place / "run", env=environment)
    return completed(process, whole, place / "run"), "20 ms"


def torn(whole: Undisturbed, place: Path, randomly: random.Random) -> tuple[Outcome, str]:
    """A crash of the machine: files of the newest checkpoint are cut, or end in zeros."""
    process = launch(whole.config, place / "run")
    wait(process, randomly.uniform(0.5, 1) * whole.seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    saved = sorted(
        (place / "run/checkpoints").glob("[0-9]*"), key=lambda each: each.stat().st_mtime
    )
    if len(saved) < 2:
        return Outcome(SUCCESS), "no checkpoint before the newest one"
    files = [path for path in saved[-1].rglob("*") if path.is_file()]
    newest = sorted(files, key=lambda path: path.stat().st_mtime_ns)[-randomly.randint(1, 6) :]
    for file in newest:
        content = file.read_bytes()
        at = randomly.randrange(len(content) + 1)
        kept = content[:at]
        file.write_bytes(kept + bytes(len(content) - at) if randomly.random() < 0.5 else kept)
    return Outcome(SUCCESS), ", ".join(str(file.relative_to(place)) for file in newest)


def wait(process: subprocess.Popen, seconds: float) -> None:
    """Waits for a moment, or for the end of the process."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        time.sleep(0.01)


def mountable(world: World) -> bool:
    """Whether this user may mount a tmpfs."""
    place = world.place / "mount"
    place.mkdir()
    found = mounted(place, "size=64k", needed=False)
    unmounted(place)
    place.rmdir()
    return found


def mounted(place: Path, options: str, needed: bool = True) -> bool:
    """Mounts a tmpfs with these options, or changes the one that is mounted."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    found = subprocess.run(command, capture_output=True, check=needed)
    return found.returncode == 0


def unmounted(place: Path) -> None:
    """Unmounts a tmpfs, if one is mounted."""
    if os.path.ismount(place):
        subprocess.run(["umount", "--lazy", str(place)], check=False)
