"""Commands that several processes of this machine run together, over loopback."""

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import launch
from tests import devices, session

ROOT = Path(launch.__file__).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Ended:
    """What a process left behind."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """Its messages of errors; Gloo and JAX may have said other things."""
        return [line for line in self.err.splitlines() if line.startswith("error: ")]

    @property
    def printed(self) -> list[str]:
        """The lines that it printed."""
        return self.out.splitlines()

    @property
    def sections(self) -> list[list[str]]:
        """The lines that each command of a session printed."""
        parts = groupby(self.printed, lambda line: line.startswith(session.BEGINS))
        found: list[list[str]] = []
        for begins, lines in parts:
            found = [*found, *([] for _ in lines)] if begins else [*found[:-1], list(lines)]
        return found


class Started:
    """The processes of one command, as they run."""

    def __init__(self, processes: Sequence[subprocess.Popen]):
        self.processes = processes

    def __getitem__(self, index: int) -> subprocess.Popen:
        return self.processes[index]

    def ended(self, timeout: float = 600) -> list[Ended]:
        """What each left; none of them may hang."""
        end = time.monotonic() + timeout
        found = []
        for process in self.processes:
            out, err = process.communicate(timeout=max(1.0, end - time.monotonic()))
            found.append(Ended(process.returncode, out, err))
        return found

    def wait_for(self, file: Path) -> None:
        """Waits until a file is there, which the processes must live to see."""
        while not file.exists():
            assert all(each.poll() is None for each in self.processes), self.ended()
            time.sleep(0.01)


@contextlib.contextmanager
def started(
    arguments: Sequence[str],
    count: int = 2,
    each: int = 2,
    differing: Callable[[int], Sequence[str]] = lambda index: (),
    program: Sequence[str] = (str(ROOT / "tests/sharing.py"), str(ROOT / "launch.py")),
    **more: str,
) -> Iterator[Started]:
    """`count` processes of `each` devices that run a command.

    `differing` gives further arguments of the process with an index.
    """
    joining = ["--coordinator", f"127.0.0.1:{free_port()}", "--join-timeout", "60"]
    joining += ["--process-count", str(count), "--process-index"]
    environment = devices.environment(each) | {"JAX_PLATFORMS": "cpu"} | more
    processes = [
        subprocess.Popen(
            [sys.executable, *program, *arguments, *differing(index), *joining, str(index)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    try:
        yield Started(processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def run(arguments: Sequence[str], count: int = 2, each: int = 2, **more: str) -> list[Ended]:
    """Runs a command to its end, which must be in order."""
    with started(arguments, count, each, **more) as processes:
        return in_order(processes)


def run_all(
    commands: Sequence[Sequence[str]],
    count: int = 2,
    each: int = 2,
    differing: Callable[[int], Sequence[str]] = lambda index: (),
) -> list[Ended]:
    """Runs commands one after another in the same processes, which must end in order."""
    program = ("-m", "tests.session")
    with started([json.dumps(commands)], count, each, differing, program) as processes:
        return in_order(processes)


def in_order(processes: Started) -> list[Ended]:
    """What processes left, each of which must end with exit code 0."""
    found = processes.ended()
    assert [process.code for process in found] == [0] * len(found), found
    return found


def alone(arguments: Sequence[str], each: int = 1, code: int = 0, **more: str) -> Ended:
    """Runs a command in one process with `each` devices, which must end with a code."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), *arguments],
        cwd=ROOT,
        env=devices.environment(each) | {"JAX_PLATFORMS": "cpu"} | more,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == code, done.stderr
    return Ended(done.returncode, done.stdout, done.stderr)
