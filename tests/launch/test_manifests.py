"""The YAML files under launch/: fields as their schemas have them, and their commands executed.

The schemas are the parts that are used of JobSet's API (jobset_types.go, v1alpha2), of Kubernetes'
pods, and of SkyPilot's task (its page "SkyPilot YAML").
"""

import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.launch import standins
from tests.launch.standins import FILES, ROOT
from tests.processes import free_port

CONTAINER = {
    "name": str,
    "image": str,
    "command": [str],
    "resources": {"limits": {"google.com/tpu": int}},
    "volumeMounts": [{"name": str, "mountPath": str}],
}
POD = {
    "restartPolicy": str,
    "hostNetwork": bool,
    "dnsPolicy": str,
    "terminationGracePeriodSeconds": int,
    "nodeSelector": {
        "cloud.google.com/gke-tpu-accelerator": str,
        "cloud.google.com/gke-tpu-topology": str,
    },
    "containers": [CONTAINER],
    "volumes": [{"name": str, "persistentVolumeClaim": {"claimName": str}}],
}
JOB = {
    "parallelism": int,
    "completions": int,
    "backoffLimit": int,
    "template": {"spec": POD},
}
JOBSET = {
    "apiVersion": str,
    "kind": str,
    "metadata": {
        "name": str,
        "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": str},
    },
    "spec": {
        "failurePolicy": {"maxRestarts": int},
        "replicatedJobs": [{"name": str, "replicas": int, "template": {"spec": JOB}}],
    },
}
SKYPILOT = {
    "name": str,
    "workdir": str,
    "num_nodes": int,
    "resources": {
        "accelerators": str,
        "use_spot": bool,
        "disk_size": int,
        "job_recovery": {"recover_on_exit_codes": [int]},
    },
    "envs": {"EXTRA": str, "DEVICES": int, "CONFIG": str, "SHARE": str, "WORKDIR": str},
    "setup": str,
    "run": str,
}


def misfits(found, schema, at="") -> list[str]:
    """Returns the places at which a value is not as a schema says; every field must be there."""
    if isinstance(schema, dict):
        if not isinstance(found, dict) or set(found) != set(schema):
            return [f"{at}: {found}"]
        return [each for key in schema for each in misfits(found[key], schema[key], f"{at}.{key}")]
    if isinstance(schema, list):
        return [each for value in found for each in misfits(value, schema[0], f"{at}[]")]
    return [] if type(found) is schema else [f"{at}: {found}"]


@pytest.fixture
def jobset():
    return yaml.safe_load((FILES / "jobset.yaml").read_text())


@pytest.fixture
def skypilot():
    return yaml.safe_load((FILES / "skypilot.yaml").read_text())


def job_of(jobset) -> dict:
    (job,) = jobset["spec"]["replicatedJobs"]
    return job["template"]["spec"]


def command_of(jobset) -> list[str]:
    (container,) = job_of(jobset)["template"]["spec"]["containers"]
    return container["command"]


@pytest.mark.parametrize("name, schema", [("jobset", JOBSET), ("skypilot", SKYPILOT)])
def test_the_fields_are_those_of_the_schema(name, schema, request):
    assert misfits(request.getfixturevalue(name), schema) == []


def test_the_check_of_fields_finds_what_is_wrong(jobset):
    job_of(jobset)["backoffLimit"] = "0"
    job_of(jobset)["paralelism"] = 4
    (problem,) = misfits(jobset, JOBSET)
    assert "paralelism" in problem
    del job_of(jobset)["paralelism"]
    assert misfits(jobset, JOBSET) == [".spec.replicatedJobs[].template.spec.backoffLimit: 0"]


def test_the_slice_has_as_many_chips_as_are_expected(jobset):
    job = job_of(jobset)
    pod = job["template"]["spec"]
    rows, columns = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    chips = pod["containers"][0]["resources"]["limits"]["google.com/tpu"]
    assert job["parallelism"] == job["completions"]
    assert int(rows) * int(columns) == chips * job["parallelism"]
    assert f"--expect {chips * job['parallelism']} " in command_of(jobset)[2]
    assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2" and jobset["kind"] == "JobSet"
    # One failure of a pod ends the job, so that JobSet starts all of them again.
    assert job["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"


def test_the_nodes_have_as_many_devices_as_are_expected(skypilot):
    count = int(skypilot["resources"]["accelerators"].partition(":")[2])
    assert skypilot["envs"]["DEVICES"] == count * skypilot["num_nodes"]


def test_the_scripts_are_bash(jobset, skypilot):
    for script in (skypilot["setup"], skypilot["run"], command_of(jobset)[2]):
        subprocess.run(["bash", "-n", "-c", script], check=True)
    for file in (FILES / "slurm.sbatch", FILES / "tpu_vm.sh"):
        subprocess.run(["bash", "-n", str(file)], check=True)


def test_a_tpu_slice_is_left_to_find_itself(skypilot, tmp_path):
    """On GPUs the environment has the place of each process; on a TPU slice JAX knows better."""
    place = standins.place(tmp_path)
    standins.program(tmp_path / "noting", '#!/bin/bash\nenv | grep ^JAX_NUM >> "$NOTES" || true\n')
    given = node(0, 2) | {name: str(value) for name, value in skypilot["envs"].items()}
    assert place.run("bash", "-c", skypilot["run"], **given | {"EXTRA": "tpu"}).returncode == 0
    assert place.notes == []
    assert place.run("bash", "-c", skypilot["run"], **given).returncode == 0
    assert place.notes == ["JAX_NUM_PROCESSES=2"] * 2


def node(rank: int, count: int) -> dict[str, str]:
    """What SkyPilot sets in the environment of a node."""
    return {
        "SKYPILOT_NODE_RANK": str(rank),
        "SKYPILOT_NODE_IPS": "\n".join(["127.0.0.1"] * count),
        "SKYPILOT_NUM_NODES": str(count),
        "SKYPILOT_NUM_GPUS_PER_NODE": "8",
    }


def both(place, command, variables) -> list[str]:
    """Runs a command in two processes to its end, and returns what each printed."""
    running = [place.start(*command, **variables(index)) for index in range(2)]
    printed = [process.communicate(timeout=240) for process in running]
    assert [process.returncode for process in running] == [0, 0], printed
    return [out for out, _ in printed]


@pytest.mark.slow
def test_two_nodes_of_skypilot_train(skypilot, tmp_path, base, rows):
    place = standins.place(tmp_path)
    given = {
        "PYTHON": str(standins.real_python(tmp_path / "python")),
        "PORT": str(free_port()),
        "EXTRA": "cuda12",
        "DEVICES": "2",
        "CONFIG": str(standins.config(tmp_path / "x.py", base, rows, steps=2)),
        "WORKDIR": str(tmp_path / "run"),
    }
    command = ("bash", "-c", skypilot["run"])
    printed = both(place, command, lambda index: given | node(index, 2))
    assert all("sum         3 over 2 devices, as expected" in out for out in printed)
    assert (tmp_path / "run/summary.json").exists()


@pytest.mark.slow
def test_two_pods_of_the_jobset_show_their_devices_and_train(jobset, tmp_path):
    """JAX's own detection of GKE finds the places, which needs to be told that this is a TPU VM.

    The command that trains is noted: that it runs where `devices` does is shown on SkyPilot.
    """
    place = standins.place(tmp_path)
    real = standins.real_python(tmp_path / "python")
    either = f'case $2 in devices) exec {real} "$@";; *) exec {tmp_path}/noting "$@";; esac\n'
    standins.program(tmp_path / "bin/python", f"#!/bin/bash\n{either}")
    script = command_of(jobset)[2]
    assert "--expect 16" in script
    script = script.replace("--expect 16", "--expect 2")

    def pod(index: int) -> dict[str, str]:
        hosts = {"TPU_WORKER_HOSTNAMES": "localhost,localhost", "TPU_WORKER_ID": str(index)}
        slices = {
            "MEGASCALE_COORDINATOR_ADDRESS": "localhost",
            "MEGASCALE_NUM_SLICES": "1",
            "MEGASCALE_SLICE_ID": "0",
        }
        return hosts | slices | {"JAX_FORCE_TPU_INIT": "1"}

    printed = both(place, ("bash", "-c", script), pod)
    assert all("sum         3 over 2 devices, as expected" in out for out in printed)
    options = "--distributed --config configs/palette_demo.py --workdir /runs/demo"
    assert place.notes == [f" launch.py train {options}"] * 2
    assert (ROOT / "configs/palette_demo.py").exists()


@pytest.mark.slow
def test_two_processes_of_open_mpi_show_their_devices(tmp_path):
    """With what mpirun of Open MPI 4 sets."""
    place = standins.place(tmp_path)
    python = str(standins.real_python(tmp_path / "python"))
    (command,) = (
        line
        for line in (ROOT / "docs/launch.md").read_text().splitlines()
        if line.startswith("mpirun ") and " devices " in line
    )
    words = shlex.split(command.replace("--expect 16", "--expect 2"))
    program = words[words.index("python") :]

    def rank(index: int) -> dict[str, str]:
        return {
            "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911",
            "OMPI_COMM_WORLD_SIZE": "2",
            "OMPI_COMM_WORLD_RANK": str(index),
            "OMPI_COMM_WORLD_LOCAL_RANK": "0",
        }

    workdir = ["--workdir", str(tmp_path / "seen")]
    printed = both(place, [python, *program[1:], *workdir], rank)
    assert all("sum         3 over 2 devices, as expected" in out for out in printed)


def test_the_image_installs_what_the_commands_use():
    text = Path(FILES / "Dockerfile").read_text()
    assert [line.split()[0] for line in text.splitlines() if line and line[0] != "#"] == [
        "FROM", "ARG", "WORKDIR", "COPY", "RUN",
    ]  # fmt: skip
    assert '-e ".[$EXTRA]"' in text
