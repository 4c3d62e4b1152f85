"""The campaign of hostile inputs: it finds what is planted, and each of its classes works."""

import json

import pytest

from jaxtune.cli.commands import COMMANDS
from jaxtune.config import reference
from tests.hostile import classes, commands, explore, planted, strategies, workers
from tests.hostile.outcomes import (
    CRASH,
    DEFECT,
    HANG,
    MESSAGE,
    SILENT,
    SUCCESS,
    TRACEBACK,
    WORDS,
    Exited,
    command,
    judged,
    of_command,
    of_message,
)
from tests.hostile.report import Findings
from tests.hostile.world import World, build

SEED = 1


@pytest.fixture
def probes(tmp_path):
    """The classes with planted defects, by name."""
    return {probe.name: probe for probe in planted.probes(World(tmp_path))}


@pytest.mark.parametrize(
    "name, kind, defect",
    [
        ("well", SUCCESS, ""),
        ("refused", MESSAGE, ""),
        ("raises", DEFECT, TRACEBACK),
        ("silent", DEFECT, SILENT),
    ],
)
def test_how_an_input_is_judged(name, kind, defect, probes):
    found = judged(probes[name].check, 500)
    assert (found.kind, found.defect) == (kind, defect)


@pytest.mark.parametrize(
    "text, defect",
    [
        ("rows.jsonl:3: found a number, expected text", ""),
        ("[Errno 2] No such file or directory: 'a'", WORDS),
        ("embedded null byte", WORDS),
        ("", WORDS),
        ("a\n" * 200, WORDS),
    ],
)
def test_how_a_message_is_judged(text, defect):
    assert of_message(text).defect == defect


@pytest.mark.parametrize(
    "code, text, defect",
    [
        (2, "error: no such field", ""),
        (2, "error: no \x1b[31mfield", WORDS),
        (1, "error: no such field", TRACEBACK),
        (2, "Traceback (most recent call last):\nerror: no such field", TRACEBACK),
    ],
)
def test_how_a_command_is_judged(code, text, defect):
    assert of_command(Exited(code, text)).defect == defect


def test_a_defect_behind_a_command_is_found_with_its_place(monkeypatch):
    monkeypatch.setattr(reference, "text", lambda name: {}[name])
    found = judged(lambda words: command(*words), ["config", "optim"])
    assert found.defect == TRACEBACK
    assert found.signature == "traceback: run in jaxtune/cli/commands/config.py"


@pytest.mark.slow
def test_the_same_seed_draws_the_same_inputs(probes):
    drawn: list[list[int]] = [[], [], []]
    for number, into in zip((SEED, SEED, SEED + 1), drawn, strict=True):
        explore.draw(probes["well"], number, 30, into.append)
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 30


@pytest.mark.slow
def test_the_smallest_input_of_a_defect_is_found(probes):
    found = judged(probes["raises"].check, 500)
    value, outcome = explore.smallest(probes["raises"], SEED, 50, found.signature)
    assert (value, outcome.defect) == (100, TRACEBACK)


@pytest.mark.slow
def test_changes_of_a_file_can_be_repeated():
    content = json.dumps({"a": [1, {"b": 2}]}).encode()
    seen = []
    probe = explore.Probe("", 0, strategies.file_edits(content), seen.append)
    explore.draw(probe, SEED, 50, probe.check)
    for change in seen:
        again = explore.read(explore.written(change))
        assert strategies.apply(content, again) == strategies.apply(content, change)


@pytest.mark.slow
def test_workers_that_hang_or_die_are_replaced(tmp_path):
    (tmp_path / "scratch").mkdir()
    findings = Findings(SEED)
    names = ("hangs", "dies", "well", "raises")
    tasks = [workers.Task(name, SEED, 2 if name == "hangs" else 5, 1.5) for name in names]

    def seen(task, value, outcome, seconds):
        findings.note(task.probe, value, outcome, seconds)

    workers.run(tmp_path, tasks, 2, seen, planted.probes)
    assert findings.counts["hangs"][HANG] == 2
    assert findings.counts["dies"][CRASH] == 5
    assert findings.counts["well"][SUCCESS] == 5
    assert findings.total() == 17
    assert "planted.py" in findings.listing()


def test_every_command_is_attacked():
    assert commands.OPTIONS.keys() == COMMANDS.keys()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """What the inputs of the campaign are made from."""
    return build(tmp_path_factory.mktemp("hostile"))


@pytest.mark.slow
def test_every_class_draws_inputs_without_a_defect(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    findings = Findings(SEED)
    for probe in classes.all_probes(world):
        count = 1 if probe.patience > 20 else 4

        def use(value, probe=probe):
            findings.note(probe.name, explore.written(value), judged(probe.check, value))

        explore.draw(probe, SEED, count, use)
    assert findings.total(DEFECT) == 0, findings.listing()
    assert findings.total() >= 100
