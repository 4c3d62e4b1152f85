"""launch/tpu_vm.sh, with a stand-in for gcloud that has two hosts in directories here.

On a real slice JAX learns the places of the processes from the metadata server of Google Cloud; the
stand-in sets the environment variables that stand for them.
"""

import subprocess

import pytest

from tests.launch import standins
from tests.launch.standins import FILES, ROOT
from tests.launch.test_slurm import until
from tests.processes import free_port

SCRIPT = str(FILES / "tpu_vm.sh")


@pytest.fixture
def place(tmp_path):
    found = standins.place(tmp_path)
    for worker in "01":
        (tmp_path / "workers" / worker).mkdir(parents=True)
    return found


@pytest.fixture
def hosts(place):
    """The same with a checkout on both hosts, whose Python notes how it is called."""
    for worker in (place.path / "workers").iterdir():
        standins.program(worker / "jaxtune/.venv/bin/python", standins.NOTING)
    return place


@pytest.mark.parametrize("step", [[], ["help"]])
def test_without_a_step_it_says_which_there_are(step, place):
    done = place.run("bash", SCRIPT, *step)
    assert done.returncode == 2 and "create | setup | devices | train" in done.stderr
    assert not place.notes


def test_it_creates_and_deletes_a_slice(place):
    given = {"NAME": "mine", "ZONE": "us-west4-a", "TYPE": "v5litepod-16", "SPOT": "1"}
    assert (
        place.run("bash", SCRIPT, "create", VERSION="v2-alpha-tpuv5-lite", **given).returncode == 0
    )
    assert place.run("bash", SCRIPT, "delete", **given).returncode == 0
    assert place.notes == [
        "gcloud compute tpus tpu-vm create mine --zone=us-west4-a "
        "--accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite --spot",
        "gcloud compute tpus tpu-vm delete mine --zone=us-west4-a --quiet",
    ]


@pytest.mark.slow
def test_setup_copies_what_is_committed_to_every_host(place):
    note = '#!/bin/bash\necho "$WORKER python3 $*" >> "$NOTES"\n'
    standins.program(place.path / "bin/python3", note)
    done = place.run("bash", SCRIPT, "setup")
    assert done.returncode == 0, done.stderr
    committed = subprocess.run(
        ["git", "show", "HEAD:launch.py"], cwd=ROOT, capture_output=True, check=True
    )
    for worker in "01":
        checkout = place.path / "workers" / worker / "jaxtune"
        assert (checkout / "launch.py").read_bytes() == committed.stdout
        installed = f"{worker} python3 -m uv pip install --quiet -e .[tpu]"
        assert place.notes.count(installed) == 1


@pytest.mark.slow
def test_setup_mounts_the_share_on_every_host(place):
    for name in ("python3", "sudo"):
        note = f'#!/bin/bash\necho "$WORKER {name} $*" >> "$NOTES"\n'
        standins.program(place.path / "bin" / name, note)
    done = place.run("bash", SCRIPT, "setup", SHARE="10.0.0.2:/all runs")
    assert done.returncode == 0, done.stderr
    for worker in "01":
        assert place.notes.count(f"{worker} sudo mkdir -p /runs") == 1
        assert place.notes.count(f"{worker} sudo mount -t nfs 10.0.0.2:/all runs /runs") == 1


@pytest.mark.parametrize(
    "kind, count", [("v6e-16", 16), ("v5litepod-8", 8), ("v4-32", 16), ("v5p-8", 4)]
)
def test_devices_are_counted_as_jax_counts_them(kind, count, hosts):
    assert hosts.run("bash", SCRIPT, "devices", TYPE=kind).returncode == 0
    shown = [line for line in hosts.notes if "launch.py" in line]
    smoke = f"launch.py devices --distributed --expect {count}"
    assert sorted(each for each in shown if "gcloud" not in each) == [f"0 {smoke}", f"1 {smoke}"]


@pytest.mark.slow
def test_options_reach_every_host_as_they_were_typed(hosts):
    done = hosts.run("bash", SCRIPT, "train", "--config.data.prefix=a {b}'s $HOME\n", "--x")
    assert done.returncode == 0, done.stderr
    given = "\n".join(hosts.notes).partition("\n0 launch.py train ")[2]
    assert given.startswith("--distributed --config.data.prefix=a {b}'s $HOME\n --x")


@pytest.mark.slow
def test_a_second_train_shows_the_log_of_the_first(hosts):
    running = hosts.start("bash", SCRIPT, "train", TRAINS="4", TRAIN_CODE="3")
    until(lambda: len(trained(hosts)) == 2)
    again = hosts.run("bash", SCRIPT, "train")
    assert again.returncode == 0 and running.wait(60) == 3  # that of the training
    assert len(trained(hosts)) == 2


def trained(place):
    """The calls of the training, which also name the host."""
    return [line for line in place.notes if line[1:].startswith(" launch.py train ")]


@pytest.mark.slow
def test_two_hosts_show_their_devices_train_and_stop(hosts, base, rows):
    for worker in (hosts.path / "workers").iterdir():
        checkout = worker / "jaxtune"
        standins.real_python(checkout / ".venv/bin/python")
        (checkout / "launch.py").symlink_to(ROOT / "launch.py")
        (checkout / "jaxtune").symlink_to(ROOT / "jaxtune")
    workdir = hosts.path / "run"
    config = standins.config(hosts.path / "x.py", base, rows, steps=400)
    joined = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_NUM_PROCESSES": "2",
        "TYPE": "v6e-2",
    }
    shown = hosts.run("bash", SCRIPT, "devices", **joined)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("sum         3 over 2 devices, as expected") == 2
    options = ("--no-plan", f"--config={config}", f"--workdir={workdir}")
    running = hosts.start("bash", SCRIPT, "train", *options, **joined)
    journal = workdir / "metrics.jsonl"
    until(lambda: journal.exists() and journal.read_text().count('"kind": "train"') > 1, 120)
    assert hosts.run("bash", SCRIPT, "stop").returncode == 0
    out, _ = running.communicate(timeout=60)
    assert running.returncode == 143
    assert "stopped by SIGTERM after step " in out and "run the same command again to resume" in out
    saved = [int(each.name) for each in (workdir / "checkpoints").iterdir() if each.name.isdigit()]
    assert saved and max(saved) < 400
