"""`launch.py plan`: what it writes, and what a person may get wrong, in one message."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

import launch
from jaxtune.runs.plan import targets


@pytest.mark.slow
def test_a_plan_is_printed_and_written(config, capsys):
    assert launch.main(["plan", "--config", config(), "--rows", "9"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^training step, 4 × 64 .* [KM]iB$", printed, re.MULTILINE)
    assert "the first 9 of" in printed and "written to runs/x/plan.json" in printed
    plan = json.loads(Path("runs/x/plan.json").read_text())
    assert plan["programs"][0]["name"] == "train" and plan["sample"] == 9 and plan["steps"] == 2
    assert sorted(path.name for path in Path("runs/x").iterdir()) == ["plan.json", "run.json"]


@pytest.mark.parametrize(
    "arguments, problem",
    [
        (["--target", "h1000"], "h1000.*h100"),
        (["--target", "v5e:banana"], "has no topology 'banana'; choose from 1x1,"),
        (["--target", "v5e:3x5"], "has no topology '3x5'; choose from 1x1,"),
        (["--target", ""], "--target"),
        (["--rows", "0"], "--rows"),
        (["--rows", "many"], "--rows"),
        (["--config.optim.lrr=1"], "optim.lrr"),
        (["--config.mesh.fsdp=3"], "product is the device count"),
        (["--config.model.path=nowhere"], "nowhere"),
        (["--config.data.source=nowhere.jsonl"], "nowhere.jsonl: no such file"),
    ],
)
def test_what_a_person_may_get_wrong(arguments, problem, config, failure):
    message = failure("plan", "--config", config(), *arguments)
    assert re.search(problem, message), message
    assert not Path("runs").exists()


def test_devices_that_do_not_tell_their_memory_have_no_largest_batch(config, failure, monkeypatch):
    unknown = replace(targets.at_hand(), limit_bytes=None)
    monkeypatch.setattr(targets, "at_hand", lambda: unknown)
    message = failure("plan", "--config", config(), "--fit")
    assert "does not tell how much memory it has; name the chip with --target" in message


def test_a_directory_that_is_no_run_is_left_alone(config, failure):
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("kept")
    assert "mine" in failure("plan", "--config", config(), "--workdir", "mine")
    assert [path.name for path in Path("mine").iterdir()] == ["notes.txt"]
