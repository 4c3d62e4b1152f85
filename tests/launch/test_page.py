"""docs/launch.md and launch/: their commands are ones, and each place has all its parts."""

import re
import shlex

import pytest
import yaml

import launch
from jaxtune.cli import devices
from tests.launch.standins import FILES, GCLOUD, ROOT

TEXT = (ROOT / "docs/launch.md").read_text()
FENCED = TEXT.split("```")[1::2]
BLOCKS = [block.removeprefix("bash\n") for block in FENCED if block.startswith("bash\n")]
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))
# Of `xpk workload create` (src/xpk/parser/workload.py), of kubectl and of `sky jobs launch`.
OPTIONS = {
    "xpk": {
        "--workload", "--cluster", "--project", "--zone", "--tpu-type", "--docker-image",
        "--max-restarts", "--termination-grace-period-seconds", "--command",
    },
    "kubectl": {"--follow", "--prefix", "--selector"},
    "sky": {"--env", "--infra", "--num-nodes", "--gpus"},
    "mpirun": {"-np", "--host"},
}  # fmt: skip


def lines(text: str) -> list[str]:
    """The commands of a script, a line each."""
    return [each.strip() for each in text.replace("\\\n", " ").splitlines()]


def own(text: str) -> list[list[str]]:
    """The arguments of every call of launch.py in a text, of all in a nested command too."""
    found = []
    for line in lines(text):
        for call in re.findall(r"launch\.py ((?:devices|train)(?: [^&\"\n]*)?)", line):
            found.append(shlex.split(call))
    return found


CALLS = [call for block in BLOCKS for call in own(block)]
(JOBSET,) = yaml.safe_load((FILES / "jobset.yaml").read_text())["spec"]["replicatedJobs"]
POD = JOBSET["template"]["spec"]["template"]["spec"]
CALLS += own(POD["containers"][0]["command"][2])


@pytest.mark.parametrize("arguments", CALLS, ids=" ".join)
def test_every_call_of_the_program_is_one(arguments):
    options = launch.parsed(arguments)
    assert options.command == arguments[0] and callable(options.run)


def test_there_are_calls_of_both_commands():
    assert {call[0] for call in CALLS} == {"devices", "train"} and len(CALLS) >= 10


def test_scripts_of_the_launch_folder_call_commands_that_exist():
    for file in ("slurm.sbatch", "tpu_vm.sh", "skypilot.yaml"):
        text = (FILES / file).read_text()
        assert re.search(r"launch\.py|step\[@\]", text)
        for name in re.findall(r"(?:launch\.py|step\[@\]\}\") (\w+) ", text):
            assert name in ("devices", "train"), file
        assert "--distributed" in text and "--expect" in text


def test_the_other_programs_are_given_options_that_they_have():
    for block in BLOCKS:
        for line in lines(block):
            words = shlex.split(line)
            if words and words[0] in OPTIONS:
                last = words.index("python") if words[0] == "mpirun" else len(words)
                used = {word for word in words[:last] if word.startswith("--")}
                assert used <= OPTIONS[words[0]], line


def test_every_step_of_the_tpu_script_on_the_page_exists():
    script = (FILES / "tpu_vm.sh").read_text()
    for step in re.findall(r"launch/tpu_vm\.sh (\w+)", TEXT):
        assert re.search(rf"^    {step}\)", script, re.MULTILINE), step
    for step in re.findall(r"tpu-vm (\w+)", script):
        assert step in GCLOUD


@pytest.mark.parametrize("title", list(SECTIONS))
def test_every_place_has_its_parts(title):
    section = SECTIONS[title]
    assert "```bash\n" in section
    assert "devices" in section
    assert "as expected" in section or "prints the same as on a TPU VM" in section
    assert "- **Stop and resume.**" in section and "- **What differs.**" in section


def test_the_places_are_those_of_the_page_s_first_sentence():
    assert list(SECTIONS) == [
        "One GPU", "Several GPUs in one host", "TPU VM", "GKE", "SLURM", "SkyPilot",
        "Two plain hosts, and Open MPI",
    ]  # fmt: skip


def test_the_outputs_are_what_the_program_prints():
    """Of the same devices, but for the versions."""
    h100 = devices.Kind("gpu", "NVIDIA H100 80GB HBM3", 1, 63_748_399_923)
    one = devices.View(0, 1, "gpu-1", (h100,), 1, {})
    assert f"{devices.text(one)}\n{devices.sum_text(one, 1)}\n" in TEXT
    v6e = devices.Kind("tpu", "TPU v6 lite", 4, 33_554_432_000)
    third = devices.View(2, 4, "t1v-n-1a2b3c4d-w-2", (v6e,), 16, {})
    assert f"{devices.text(third)}\n{devices.sum_text(third, 136)}\n" in TEXT


def test_files_that_the_page_names_are_there():
    for name in re.findall(r"launch/[\w.]+\b", TEXT):
        assert (ROOT / name).exists(), name
