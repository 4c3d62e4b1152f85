"""Worker processes that try inputs; the parent ends one that hangs, and goes on with another."""

import faulthandler
import multiprocessing
import multiprocessing.connection
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.hostile import classes
from tests.hostile.explore import Probe, draw, smallest, written
from tests.hostile.outcomes import CRASH, FRAME, HANG, Outcome, defect, judged
from tests.hostile.world import World

STARTING = 180.0  # seconds until a worker answers for the first time
MEMORY = 6 * 2**30  # bytes that a worker may allocate beyond what it starts with


@dataclass(frozen=True)
class Task:
    """Some inputs of one class, or the defect among them that is to be shrunk."""

    probe: str
    number: int  # seed of the inputs
    count: int
    patience: float = 20.0  # seconds for one input
    signature: str = ""  # of the defect to shrink; empty: count outcomes


@dataclass
class Worker:
    """A process and what it is doing."""

    process: Any
    pipe: Any
    task: Task | None = None
    value: str = ""  # the input that it tries
    since: float = 0.0  # when it began with that
    done: int = 0
    ready: bool = False


Seen = Callable[[Task, str, Outcome, float], None]  # the last are seconds


def run(
    place: Path,
    tasks: list[Task],
    processes: int,
    seen: Seen,
    probes: Callable[[World], list[Probe]] = classes.all_probes,
) -> None:
    """Runs tasks in worker processes, and calls `seen` with each input and its outcome.

    Args:
      place: Folder of the world.
      tasks: What to do; `probes` has their classes.
      processes: Number of workers.
      seen: Called with the task, the input, its outcome, and the seconds that it took.
      probes: Function of a module that returns the classes.
    """
    waiting = list(reversed(tasks))
    workers = [_started(place, probes) for _ in range(processes)]
    while waiting or any(worker.task for worker in workers):
        ready = multiprocessing.connection.wait([each.pipe for each in workers], timeout=0.5)
        for number, worker in enumerate(workers):
            if worker.pipe in ready:
                problem = _received(worker, waiting, seen)
            else:
                problem = _late(place, worker)
            if problem:
                _end(worker, waiting, seen, problem)
                workers[number] = _started(place, probes)
    for worker in workers:
        worker.pipe.send(None)
        worker.process.join(10)
        worker.process.kill()


def _received(worker: Worker, waiting: list[Task], seen: Seen) -> Outcome | None:
    """Takes one report of a worker; returns the defect if the process has ended."""
    try:
        kind, content = worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.join(5)
        return defect(CRASH, f"the process ended with exit code {worker.process.exitcode}")
    worker.since = time.monotonic()
    if kind == "input":
        worker.value = content
    elif kind == "outcome":
        worker.done += 1
        seen(worker.task, worker.value, *content)
    elif kind == "shrunk":
        seen(worker.task, *content)
    else:  # ready for a task
        worker.ready, worker.task, worker.value, worker.done = True, None, "", 0
        if waiting:
            worker.task = waiting.pop()
            worker.pipe.send(worker.task)
    return None


def _late(place: Path, worker: Worker) -> Outcome | None:
    """Returns the defect of a worker that has not answered for too long, with its stack."""
    if worker.ready and worker.task is None:
        return None
    allowed = worker.task.patience if worker.task else STARTING
    if time.monotonic() - worker.since < allowed:
        return None
    stack = _stack(place, worker.process.pid) if worker.ready else ""
    cause = next(iter(_places(stack)), "an unknown place")
    return defect(HANG, f"no answer for {allowed:g} seconds; it was in\n{stack}", cause)


def _stack(place: Path, process: int) -> str:
    """Returns the stacks of all threads of a worker, which it writes on a signal."""
    os.kill(process, signal.SIGUSR1)
    time.sleep(0.5)
    text = (place / "scratch" / f"cwd-{process}" / "stack").read_text()
    lines = [line for line in text.splitlines() if "/jaxtune/" in line]
    return "\n".join(lines[:8]) or text[:1_000]


def _places(stack: str) -> list[str]:
    """Returns the places in jaxtune of a stack, the innermost first."""
    return [f"{function} in {file}" for file, function in FRAME.findall(stack)]


def _end(worker: Worker, waiting: list[Task], seen: Seen, problem: Outcome) -> None:
    """Ends a worker that hangs or has died, notes why, and puts back what is left of its task."""
    worker.process.kill()
    worker.process.join()
    if worker.task is None:
        raise RuntimeError(f"a worker failed before its first input: {problem.text}")
    if not worker.task.signature:
        seen(worker.task, worker.value, problem, worker.task.patience)
        left = worker.task.count - worker.done - 1
        if left > 0:
            waiting.append(replace(worker.task, number=worker.task.number + 1, count=left))


def _started(place: Path, probes: Callable[[World], list[Probe]]) -> Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(place, theirs, probes), daemon=True)
    process.start()
    theirs.close()
    return Worker(process, ours, since=time.monotonic())


def _work(place: Path, pipe: Any, known: Callable[[World], list[Probe]]) -> None:
    """Main function of a worker: tries the inputs of each task that it gets."""
    own = place / "scratch" / f"cwd-{os.getpid()}"
    own.mkdir(parents=True)
    os.chdir(own)
    stack = (own / "stack").open("w")
    faulthandler.register(signal.SIGUSR1, file=stack, all_threads=True)
    sys.stderr = (own / "stderr").open("w")
    os.dup2(sys.stderr.fileno(), 2)  # what native code prints about a file that it rejects
    probes = {probe.name: probe for probe in known(World(place))}
    pipe.send(("ready", None))
    limited = False
    while (task := pipe.recv()) is not None:
        try:
            if not limited:
                limited = _limit_memory()
            _try(probes[task.probe], task, pipe)
        except Exception:
            outcome = defect("traceback", "in the campaign: " + traceback.format_exc())
            pipe.send(("outcome", (outcome, 0.0)))
        pipe.send(("ready", None))


def _try(probe: Probe, task: Task, pipe: Any) -> None:
    if task.signature:
        found = smallest(probe, task.number, task.count, task.signature)
        if found:
            pipe.send(("shrunk", (written(found[0]), found[1], 0.0)))
        return

    def use(value):
        pipe.send(("input", written(value)))
        began = time.monotonic()
        found = judged(probe.check, value)
        pipe.send(("outcome", (found, time.monotonic() - began)))

    draw(probe, task.number, task.count, use)


def _limit_memory() -> bool:
    """Lets this process allocate only so much more, so that a bomb ends in MemoryError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    return True


def chunks(probe: Probe, count: int, number: int) -> Iterator[Task]:
    """Yields the tasks of a class, each with a seed of its own."""
    for index in range(0, count, probe.chunk):
        size = min(probe.chunk, count - index)
        yield Task(probe.name, number + 1_000 * index, size, probe.patience)
