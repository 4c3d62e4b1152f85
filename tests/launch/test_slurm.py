"""launch/slurm.sbatch, started as SLURM starts it, with stand-ins for srun and scontrol."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.launch import standins
from tests.launch.standins import FILES, allocation

SCRIPT = str(FILES / "slurm.sbatch")
# Of sbatch(1), those that are used.
KNOWN = {
    "job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time", "signal",
    "requeue", "output", "open-mode",
}  # fmt: skip


@pytest.fixture
def place(tmp_path):
    return standins.place(tmp_path)


def test_the_directives_are_options_of_sbatch():
    found = standins.directives(FILES / "slurm.sbatch")
    assert set(found) == KNOWN
    assert found["signal"] == "TERM@120"  # without B: the steps get it, not the script
    # One process per GPU, each of which sees all GPUs of its node.
    assert found["ntasks-per-node"] == found["gpus-per-node"]
    # A directive after the first command would be ignored.
    lines = (FILES / "slurm.sbatch").read_text().splitlines()
    first = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    assert all(n < first for n, line in enumerate(lines) if line.startswith("#SBATCH"))


def test_each_task_shows_its_devices_and_then_trains(place):
    done = place.run("bash", SCRIPT, "--config", "x.py", "--workdir", "a b", **allocation(2, 2))
    assert done.returncode == 0, done.stderr
    shown, trained = place.notes[:4], place.notes[4:]
    smoke = "launch.py devices --distributed --expect 4"
    assert sorted(shown) == [f"{task} {smoke}" for task in range(4)]
    command = "launch.py train --distributed --config x.py --workdir a b"
    assert sorted(trained) == [f"{task} {command}" for task in range(4)]


def test_without_options_it_trains_the_demo(place):
    assert place.run("bash", SCRIPT, **allocation(1, 1)).returncode == 0
    assert place.notes[1].endswith("train --distributed --config=configs/palette_demo.py")


@pytest.mark.parametrize(
    "code, restarts, again",
    [(0, 0, False), (143, 0, True), (75, 3, True), (2, 0, False), (1, 0, False), (75, 100, False)],
)
def test_what_was_saved_or_lost_is_queued_again(place, code, restarts, again):
    given = allocation(1, 2, restarts)
    assert place.run("bash", SCRIPT, TRAIN_CODE=str(code), **given).returncode == code
    assert ("scontrol requeue 7" in place.notes) == again


def test_nothing_trains_where_devices_are_missing(place):
    done = place.run("bash", SCRIPT, OTHER_CODE="2", **allocation(1, 2))
    assert done.returncode == 2
    assert not any("train" in line or "scontrol" in line for line in place.notes)


@pytest.mark.slow
def test_a_cancelled_job_is_not_queued_again(place):
    """scancel and the end of a job by SLURM signal the script as well."""
    running = place.start("bash", SCRIPT, TRAINS="2", TRAIN_CODE="143", **allocation(1, 1))
    until(lambda: any("train" in line for line in place.notes))
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=60)
    assert running.returncode == 143 and "scontrol requeue 7" not in place.notes


@pytest.mark.slow
def test_two_nodes_train_stop_on_sigterm_and_resume(place, base, rows):
    """With the real command, which finds its place by JAX's own detection of SLURM."""
    workdir = place.path / "run"
    python = str(standins.real_python(place.path / "python"))
    config = standins.config(place.path / "x.py", base, rows, steps=400)
    options = ("--no-plan", f"--config={config}", f"--workdir={workdir}")
    command = ("bash", SCRIPT, *options)
    running = place.start(*command, PYTHON=python, **allocation(2, 1))
    journal = workdir / "metrics.jsonl"
    until(lambda: journal.exists() and journal.read_text().count('"kind": "train"') > 1, 120)
    for task in (place.path / "tasks").read_text().split():
        os.kill(int(task), signal.SIGTERM)  # as at TERM@120, and before a preemption
    out, err = running.communicate(timeout=120)
    assert running.returncode == 143, err
    assert out.count("sum         3 over 2 devices, as expected") == 2
    assert place.notes == ["scontrol requeue 7"]
    stopped = last_step(journal)
    assert stopped < 400
    more = (f"--config.steps={stopped + 2}", "--accept-changes")
    done = place.run(*command, *more, PYTHON=python, **allocation(2, 1, restarts=1))
    assert done.returncode == 0, done.stderr
    assert f"resuming from step {stopped} in " in done.stdout and last_step(journal) == stopped + 2
    assert json.loads((workdir / "summary.json").read_text())["steps"] == stopped + 2


def last_step(journal: Path) -> int:
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    return max(line["step"] for line in lines if line["kind"] == "train")


def until(holds, seconds: float = 30) -> None:
    """Waits until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)
