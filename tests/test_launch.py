"""launch.py: what it prints, what it writes, and how it fails."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import launch
from jaxtune.workdir.directory import claim
from tests import reference

ROOT = Path(launch.__file__).parent


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoints") / "tiny-llama"
    reference.make(reference.CASES["llama-linear"], directory)
    return directory


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty directory to run in, and an environment that tests leave as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")


def failure(capsys, *arguments, code=2):
    """The one message of a command that fails, and nothing else."""
    assert launch.main([str(argument) for argument in arguments]) == code
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and "Traceback" not in printed.err
    return printed.err


def test_inspect_prints_a_table_and_writes_its_numbers(checkpoint, tmp_path, capsys):
    assert launch.main(["inspect", str(checkpoint), "--mesh", "fsdp=8,tensor=2"]) == 0
    printed = capsys.readouterr().out
    file = Path("runs/inspect/tiny-llama/inspect.json")
    assert printed.endswith(f"written to {file}\n")
    report = json.loads(file.read_text())
    assert report["mesh"] == {"fsdp": 8, "tensor": 2}
    assert f"{report['totals']['parameters']:,}: " in printed
    for leaf in report["leaves"]:
        assert f"{leaf['parameters']:,}" in printed
    assert sorted(os.listdir(file.parent)) == ["inspect.json", "run.json"]


def test_json_is_what_is_written(checkpoint, capsys):
    assert launch.main(["inspect", str(checkpoint), "--json", "--workdir", "here"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == json.loads(Path("here/inspect.json").read_text())
    assert "written to here/inspect.json" in printed.err


def test_bad_path(capsys):
    assert "no such directory or file" in failure(capsys, "inspect", "./nowhere")
    assert os.listdir() == []


def test_unknown_model_type(capsys):
    Path("model").mkdir()
    Path("model/config.json").write_text('{"model_type": "gpt2"}')
    assert "model_type 'gpt2' is not supported" in failure(capsys, "inspect", "model")


def test_unknown_command(capsys):
    message = failure(capsys, "inspekt", "model")
    assert "'inspekt'" in message and "choose from" in message and "inspect" in message
    assert "COMMAND" in failure(capsys)
    assert "inspect does not read a config" in failure(
        capsys, "inspect", "x", "--config.optim.lr=1"
    )


def test_train_is_the_command_where_none_is_named(capsys):
    assert "launch.py train" in failure(capsys, "--workdir", "here")
    assert "nowhere.py: no such file" in failure(capsys, "--config=nowhere.py")


@pytest.mark.parametrize("mesh", ["8", "fsdp", "fsdp=", "fsdp=x", "fsdp=2,fsdp=4", ""])
def test_bad_mesh(mesh, checkpoint, capsys):
    message = failure(capsys, "inspect", checkpoint, "--mesh", mesh)
    assert f"--mesh {mesh!r}: expected axes and sizes, such as fsdp=8,tensor=2" in message


def test_workdir_that_cannot_be(checkpoint, capsys):
    Path("file").touch()
    message = failure(capsys, "inspect", checkpoint, "--workdir", "file/runs")
    assert "file/runs/run.json cannot be written: Not a directory" in message
    assert "choose another path with --workdir" in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_workdir(checkpoint, capsys):
    Path("locked").mkdir(mode=0o500)
    message = failure(capsys, "inspect", checkpoint, "--workdir", "locked")
    assert "locked/run.json cannot be written: Permission denied" in message


def test_a_failed_write_leaves_the_earlier_report(checkpoint, capsys, monkeypatch):
    def fail(*_):
        raise OSError(30, "Read-only file system")

    claim(Path("here"))
    Path("here/inspect.json").write_text("earlier")
    monkeypatch.setattr(Path, "replace", fail)
    message = failure(capsys, "inspect", checkpoint, "--workdir", "here")
    assert "here/inspect.json cannot be written: Read-only file system" in message
    assert sorted(os.listdir("here")) == ["inspect.json", "run.json"]
    assert Path("here/inspect.json").read_text() == "earlier"


def test_interrupt_and_defects(monkeypatch, capsys):
    def stop(_):
        raise KeyboardInterrupt

    def fail(_):
        raise RuntimeError("a defect")

    monkeypatch.setattr("jaxtune.cli.commands.inspect.run", stop)
    assert launch.main(["inspect", "model"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    monkeypatch.setattr("jaxtune.cli.commands.inspect.run", fail)
    assert launch.main(["inspect", "model"]) == 1
    assert capsys.readouterr().err == (
        "error: RuntimeError: a defect\n  This is a defect of jaxtune. Run the command again with "
        "--debug for the traceback, and report it\n"
    )
    with pytest.raises(RuntimeError, match="a defect"):
        launch.main(["inspect", "model", "--debug"])


def test_errors_that_a_person_can_correct_have_one_base():
    """Any other ValueError is a defect, and keeps its traceback; no module raises a plain one."""
    for file in sorted((ROOT / "jaxtune").rglob("*.py")):
        assert not re.search(
            r"raise ValueError\(|^class (?!UserError).*\(ValueError\)", file.read_text(), re.M
        ), file


def run(*arguments):
    """launch.py as a person runs it, from another directory; lists what it imports."""
    command = [sys.executable, "-X", "importtime", ROOT / "launch.py", *arguments]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_help_imports_nothing_heavy():
    done = run("--help")
    assert done.returncode == 0
    assert "inspect" in done.stdout
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "argparse" in imported
    assert not imported & {"jax", "numpy", "jaxtune.cli.inspect.report", "huggingface_hub"}


@pytest.mark.slow
def test_errors_reach_the_shell():
    done = run("inspect", "./nowhere")
    assert done.returncode == 2
    assert done.stdout == ""
    own = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert len(own) == 1 and own[0].startswith("error: './nowhere': no such directory or file")


def test_a_file_that_cannot_be_read(checkpoint, monkeypatch, capsys):
    def refused(*_):
        raise PermissionError(13, "Permission denied", "model.safetensors")

    monkeypatch.setattr("jaxtune.cli.inspect.report.inspect", refused)
    assert "Permission denied: 'model.safetensors'" in failure(capsys, "inspect", checkpoint)


@pytest.mark.slow
def test_output_that_nobody_reads_on(checkpoint):
    command = f"{sys.executable} {ROOT / 'launch.py'} inspect {checkpoint} --names | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr
