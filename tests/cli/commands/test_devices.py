"""`launch.py devices`: alone, in two processes, and where devices are missing."""

import json
import re
from pathlib import Path

import jax
import pytest

import launch
from tests import processes


def test_it_shows_the_devices_and_writes_them(capsys):
    count = jax.device_count()
    assert launch.main(["devices", "--expect", str(count)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^versions +jaxtune .*jaxlib \d", printed, re.MULTILINE)
    assert re.search(r"^process +0 of 1, on ", printed, re.MULTILINE)
    assert re.search(rf"^devices +{count} × cpu; {count} in all processes$", printed, re.MULTILINE)
    assert re.search(r"^sum +\d+ over .* as expected", printed, re.MULTILINE)
    assert printed.endswith("written to runs/devices/devices.json\n")
    found = json.loads(Path("runs/devices/devices.json").read_text())
    assert found["devices"] == count and found["processes"][0]["local"][0]["platform"] == "cpu"
    assert found["sum"] == count * (count + 1) // 2


def test_json_is_what_is_written(capsys):
    assert launch.main(["devices", "--json", "--workdir", "here"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == json.loads(Path("here/devices.json").read_text())


def test_missing_devices_are_one_message(failure, capsys):
    message = failure("devices", "--expect", "4096")
    assert "expected 4096. Start the command on every host" in message
    assert not Path("runs").exists()


def test_a_directory_of_something_else_is_left_alone(failure):
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")
    assert "is not empty and has no run.json" in failure("devices", "--workdir", "mine")


@pytest.mark.parametrize("value", ["0", "many", "-1"])
def test_an_expectation_that_is_no_number(value, failure):
    assert "expected a whole number from 1" in failure("devices", f"--expect={value}")


@pytest.mark.slow
def test_two_processes_see_each_other(tmp_path):
    found = processes.run(["devices", "--expect", "4", "--workdir", str(tmp_path / "seen")])
    for index, process in enumerate(found):
        assert f"process     {index} of 2, on " in process.out
        assert "devices     2 × cpu; 4 in all processes" in process.out
        assert f"sum         10 over 4 devices, as expected (process {index} of 2)" in process.out
        assert ("written to" in process.out) == (index == 0)
    written = json.loads((tmp_path / "seen/devices.json").read_text())
    assert [each["process"] for each in written["processes"]] == [0, 1]


@pytest.mark.slow
def test_two_processes_with_too_few_devices_both_fail(tmp_path):
    with processes.started(["devices", "--expect", "8", "--workdir", str(tmp_path)]) as started:
        found = started.ended()
    assert [process.code for process in found] == [2, 2]
    for process in found:
        assert len(process.errors) == 1
    assert any("found 4 devices in 2 processes" in each for p in found for each in p.errors)
