"""Runs the campaign: hostile inputs in worker processes, then kills and faults of storage.

    python -m tests.hostile [--seed N] [--scale X] [--only TEXT] [--out FILE]
    python -m tests.hostile --class NAME --input FILE    # one input again, with its traceback

Exits with 1 if there is any defect.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.hostile import classes, kills, storage, workers
from tests.hostile.explore import read
from tests.hostile.report import Findings
from tests.hostile.world import World, build, environment

KILLS = 96  # at most, as some runs end before they are stopped so often
SHRUNK = 40  # defects whose inputs are made smaller


def main() -> int:
    """Runs the campaign, or repeats one input."""
    options = arguments()
    place = options.world or Path(tempfile.mkdtemp(prefix="jaxtune-hostile-"))
    os.environ.update(environment(place))
    try:
        if not (place / "run").exists():
            built(place)
        if options.input:
            return repeated(World(place), options)
        return campaign(World(place), options)
    finally:
        if not options.world:
            shutil.rmtree(place, ignore_errors=True)


def arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    add = parser.add_argument
    add("--seed", type=int, default=None, help="seed of all inputs (default: a new one)")
    add("--scale", type=float, default=1.0, help="share of the inputs (default: 1, all of them)")
    add("--signals", type=int, default=16, help="SIGINTs and SIGTERMs, of each (default: 16)")
    add("--only", default="", help="only classes whose names contain this")
    add("--processes", type=int, default=2, help="processes at once (default: 2)")
    add("--out", type=Path, default=Path("build/hostile.json"), help="report as JSON")
    add("--world", type=Path, help="folder to keep the base, rows and run of the inputs in")
    add("--class", dest="probe", default="", help="class of the input to repeat")
    add("--input", default="", help="an input of a report, or a file that holds it")
    return parser.parse_args()


def built(place: Path) -> None:
    """Builds the world in a process of its own, so that this one stays small."""
    import multiprocessing

    process = multiprocessing.get_context("spawn").Process(target=build, args=(place,))
    process.start()
    process.join()
    if process.exitcode:
        sys.exit("the world of the campaign cannot be built")


def campaign(world: World, options: argparse.Namespace) -> int:
    """Runs all classes, and reports."""
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}; the same inputs again: make hostile SEED={seed}", flush=True)
    began = time.monotonic()
    findings = Findings(seed)
    inputs(world, options, seed, findings)
    taken = (time.monotonic() - began) / 60
    print(f"{findings.total():,} inputs in {taken:.1f} minutes; now stops and storage", flush=True)
    if options.only in "stops and storage":
        whole = kills.undisturbed(world)
        print(f"an undisturbed run takes {whole.seconds:.1f} s", flush=True)
        counts = {"KILL": KILLS * options.scale, "INT": options.signals, "TERM": options.signals}
        kills.run(world, whole, findings, counts, options.processes)
        storage.run(world, whole, findings, options.scale, options.processes)
    minutes = (time.monotonic() - began) / 60
    defects = findings.total("defect")
    print("\n" + findings.table())
    if defects:
        print("\n" + findings.listing(options.out.with_suffix(".cases")))
    print(
        f"\n{findings.total():,} inputs, {sum(findings.stops.values()):,} stops of runs, "
        f"{defects:,} defects of {len(findings.cases):,} kinds, in {minutes:.1f} minutes; "
        f"seed {seed}; report: {options.out}"
    )
    findings.write(options.out, minutes=round(minutes, 1), scale=options.scale)
    return 1 if defects else 0


def inputs(world: World, options: argparse.Namespace, seed: int, findings: Findings) -> None:
    """Tries the inputs of all classes, and makes those of defects smaller."""
    tasks = []
    for probe in classes.all_probes(world):
        if options.only in probe.name:
            count = max(1, round(probe.inputs * options.scale))
            tasks += workers.chunks(probe, count, seed)
    random.Random(seed).shuffle(tasks)
    tasks.sort(key=lambda task: -task.patience)  # the slow ones first, so that none is left last
    if not tasks:
        return

    def seen(task, value, outcome, seconds):
        if task.signature:
            findings.shrunk(task.probe, value, outcome)
        else:
            findings.note(task.probe, value, outcome, seconds, task.number, task.count)
        progress(findings)

    workers.run(world.place, tasks, options.processes, seen)
    found = [
        case for case in findings.cases.values() if case.outcome.defect not in ("hang", "crash")
    ]
    shrinking = [
        workers.Task(case.probe, case.number, case.count, 60.0, case.outcome.signature)
        for case in found
    ]
    if shrinking:
        workers.run(world.place, shrinking[:SHRUNK], options.processes, seen)


def progress(findings: Findings) -> None:
    """Shows how many inputs are done, on a terminal."""
    if sys.stderr.isatty():
        done = f"\r{findings.total():,} inputs, {findings.total('defect'):,} defects"
        print(done, end="", file=sys.stderr, flush=True)


def repeated(world: World, options: argparse.Namespace) -> int:
    """Tries one input again, and shows all of what happens."""
    probes = {probe.name: probe for probe in classes.all_probes(world)}
    file = Path(options.input)
    text = file.read_text() if len(options.input) < 200 and file.is_file() else options.input
    with world.scratch() as place:
        os.chdir(place)
        probes[options.probe].check(read(text))
    print("accepted")
    return 0


if __name__ == "__main__":
    sys.exit(main())
