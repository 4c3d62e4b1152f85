"""The options of joining other processes: what they mean, and what is refused in one message."""

import argparse

import pytest

from jaxtune.cli import distributed
from jaxtune.cli.commands import UsageError
from jaxtune.cli.distributed import Place
from jaxtune.cli.main import main

WHOLE = ["--coordinator", "10.0.0.2:1234", "--process-count", "4", "--process-index", "3"]


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """An environment that names no other processes."""
    for name in distributed.PLACES.values():
        monkeypatch.delenv(name, raising=False)


def options(*arguments):
    parser = argparse.ArgumentParser(exit_on_error=False)
    distributed.arguments(parser)
    return parser.parse_args(arguments)


def test_a_command_without_these_options_runs_alone(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "10.0.0.2:1234")
    assert distributed.place_of(options()) is None


def test_the_options_and_the_environment_name_the_place(monkeypatch):
    expected = Place("10.0.0.2:1234", 4, 3)
    assert distributed.place_of(options(*WHOLE)) == expected
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "10.0.0.2:1234")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    assert distributed.place_of(options("--process-index", "3")) == expected
    assert distributed.place_of(options("--distributed")) == Place("10.0.0.2:1234", 4, 0)


def test_slurm_names_the_place(monkeypatch):
    names = {"JOB_ID": 7, "STEP_NODELIST": "node[3-4]", "NTASKS": 2, "PROCID": 1, "LOCALID": 0}
    for name, value in names.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    found = distributed.place_of(options("--distributed"))
    assert found == Place("node3:61447", 2, 1, [0])
    # What is given goes first, and without --distributed nothing is guessed.
    given = ["--coordinator", "node3:1234", "--process-count", "2"]
    assert distributed.place_of(options("--distributed", *given)).coordinator == "node3:1234"
    with pytest.raises(UsageError, match="--process-index: missing"):
        distributed.place_of(options(*given))


@pytest.mark.parametrize(
    "arguments, problem",
    [
        (WHOLE[:4], "--process-index: missing; --coordinator, --process-count, --process-index"),
        (WHOLE[2:], "--coordinator: missing; "),
        (["--process-index", "0"], "--coordinator and --process-count: missing; "),
        ([*WHOLE[:4], "--process-index", "4"], "--process-index 4: expected 0 to 3, as --process"),
        ([*WHOLE, "--coordinator", "10.0.0.2"], "--coordinator '10.0.0.2': expected HOST:PORT"),
        ([*WHOLE, "--coordinator", ":80"], "--coordinator ':80': expected HOST:PORT"),
        ([*WHOLE, "--coordinator", "a:70000"], "--coordinator 'a:70000': expected HOST:PORT"),
        ([*WHOLE, "--process-count", "0"], "found '0', expected a whole number from 1 to"),
        ([*WHOLE, "--process-index", "-1"], "found '-1', expected a whole number from 0 to"),
        ([*WHOLE, "--join-timeout", "soon"], "found 'soon', expected a whole number from 1 to"),
        (["--distributed"], "--distributed: no other processes were found; expected one of Open"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["train", "eval", "generate", "export"])
def test_what_names_no_place_is_refused(command, arguments, problem, capsys):
    assert main([command, "--config", "configs/palette_demo.py", *arguments]) == 2
    printed = capsys.readouterr()
    assert problem in printed.err and printed.err.startswith("error: ")
    assert "Traceback" not in printed.err and not printed.out


@pytest.mark.parametrize("variable", ["JAX_NUM_PROCESSES", "JAX_PROCESS_ID"])
def test_an_environment_that_is_no_number_is_refused(variable, monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "10.0.0.2:1234")
    monkeypatch.setenv(variable, "two")
    with pytest.raises(UsageError, match=rf"\${variable} is 'two': expected a whole number"):
        distributed.place_of(options("--distributed"))


def test_a_scheduler_that_cannot_be_read_is_refused(monkeypatch):
    names = {"JOB_ID": "x", "STEP_NODELIST": "a", "NTASKS": 2, "PROCID": 1, "LOCALID": 0}
    for name, value in names.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    with pytest.raises(UsageError, match="the other processes cannot be found: invalid literal"):
        distributed.place_of(options("--distributed"))
