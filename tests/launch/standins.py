"""Stand-ins for the programs that the files under launch/ call, and what starts several processes.

Each stand-in is a program on PATH that refuses an option which the manual of the real one does not
have, and sets the environment that the real one documents.
"""

import os
import re
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests import devices, tiny
from tests.processes import free_port

ROOT = Path(__file__).parent.parent.parent
FILES = ROOT / "launch"
SRUN = {"--label", "--kill-on-bad-exit", "--cpus-per-task"}  # of srun(1), those that are used
GCLOUD = {  # of `gcloud compute tpus tpu-vm`, by command
    "create": {"--zone", "--accelerator-type", "--version", "--spot"},
    "ssh": {"--zone", "--worker", "--command"},
    "scp": {"--zone", "--worker", "--recurse"},
    "delete": {"--zone", "--quiet"},
}

# A Python that notes how it was called, and ends with the code that the test wants.
NOTING = """#!/bin/bash
cat <<< "${SLURM_PROCID:-}${WORKER:-} $*" >> "$NOTES"  # in one piece, also two lines
if [[ $2 == train ]]; then sleep "${TRAINS:-0}"; exit "${TRAIN_CODE:-0}"; fi
exit "${OTHER_CODE:-0}"
"""

SRUN_PROGRAM = """#!{python}
import os, subprocess, sys
rest = sys.argv[1:]
while rest[0].startswith("-"):
    assert rest[0].partition("=")[0] in {known!r}, rest[0]
    rest.pop(0)
count = int(os.environ["SLURM_NTASKS"])
each = count // int(os.environ["SLURM_JOB_NUM_NODES"])
tasks = []
for index in range(count):
    place = dict(SLURM_PROCID=str(index), SLURM_LOCALID=str(index % each),
                 SLURM_STEP_NODELIST="localhost", SLURM_STEP_NUM_NODES=str(count // each))
    tasks.append(subprocess.Popen(rest, env=os.environ | place))
with open(os.environ["TASKS"], "w") as file:
    print(*(task.pid for task in tasks), file=file)
sys.exit(max(code if code >= 0 else 128 - code for code in [task.wait() for task in tasks]))
"""

SCONTROL_PROGRAM = """#!/bin/bash
echo "scontrol $*" >> "$NOTES"
"""

GCLOUD_PROGRAM = """#!{python}
import os, shutil, subprocess, sys
with open(os.environ["NOTES"], "a") as file:
    print("gcloud", *sys.argv[1:], file=file)
assert sys.argv[1:4] == ["compute", "tpus", "tpu-vm"]
step, options = sys.argv[4], [each for each in sys.argv[5:] if each.startswith("--")]
assert {{each.partition("=")[0] for each in options}} <= {known!r}[step], options
workers = [os.path.join(os.environ["WORKERS"], str(index)) for index in range(2)]
if step == "scp":
    for home in workers:
        shutil.copy(sys.argv[5], home)
if step == "ssh":
    (command,) = [each.removeprefix("--command=") for each in options if "--command=" in each]
    place = [dict(JAX_PROCESS_ID=str(index), WORKER=str(index)) for index in range(2)]
    running = [
        subprocess.Popen(["bash", "-c", command], cwd=home, env=os.environ | variables)
        for home, variables in zip(workers, place)
    ]
    sys.exit(max([each.wait() for each in running]))
"""


def program(path: Path, text: str) -> Path:
    """Writes a program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def real_python(path: Path) -> Path:
    """Writes a program that is this Python, wherever it lies; see tests/sharing.py."""
    return program(path, f'#!/bin/sh\nexec {sys.executable} {ROOT}/tests/sharing.py "$@"\n')


@dataclass
class Place:
    """A directory with stand-ins, and the environment in which they are found."""

    path: Path
    environment: dict[str, str]

    @property
    def notes(self) -> list[str]:
        """What the stand-ins noted, a line for each call."""
        file = self.path / "notes"
        return file.read_text().splitlines() if file.exists() else []

    def run(self, *command: str, **more: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            command,
            env=self.environment | more,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=240,
        )

    def start(self, *command: str, **more: str) -> subprocess.Popen:
        return subprocess.Popen(
            command,
            env=self.environment | more,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def place(path: Path) -> Place:
    """Writes all stand-ins into a directory."""
    tools = path / "bin"
    program(tools / "srun", SRUN_PROGRAM.format(python=sys.executable, known=SRUN))
    program(tools / "scontrol", SCONTROL_PROGRAM)
    program(tools / "gcloud", GCLOUD_PROGRAM.format(python=sys.executable, known=GCLOUD))
    program(path / "noting", NOTING)
    own = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "NOTES": str(path / "notes"),
        "TASKS": str(path / "tasks"),
        "WORKERS": str(path / "workers"),
        "PYTHON": str(path / "noting"),
        "JAX_PLATFORMS": "cpu",
        "JAX_COORDINATOR_PORT": str(free_port()),
    }
    return Place(path, devices.environment(1) | own)


def config(file: Path, base: Path, rows: Path, steps: int) -> Path:
    """Writes the config of a short run of the tiny base, which logs every step.

    Answers are short, as processes meet several times for every token that an export is verified
    with.
    """
    short = {"max_new_tokens": 2}
    values = tiny.settings(base, rows, steps=steps, log={"every": 1}, generate=short)
    file.write_text(f"def get_config():\n    return {values!r}\n")
    return file


def directives(script: Path) -> dict[str, str]:
    """Returns the options of sbatch in a script, by their names."""
    found = re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", script.read_text(), re.MULTILINE)
    return dict(found)


def allocation(nodes: int, tasks: int, restarts: int = 0) -> dict[str, str]:
    """Returns what sbatch sets in the environment of a script, on nodes with some tasks each."""
    return {
        "SLURM_JOB_ID": "7",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_NTASKS": str(nodes * tasks),
        "SLURM_CPUS_PER_TASK": "8",
        **({"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}),
    }
