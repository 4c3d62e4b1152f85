"""Commands of several processes, over loopback: they do what one process does, or end together."""

import contextlib
import io
import itertools
import json
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import launch
from jaxtune.workdir.checkpoints import DAMAGED, Checkpoints
from tests import processes, tiny
from tests.processes import alone, run_all, started
from tests.runs.test_run import contents

STEPS = 8
NEAR = 1e-5  # relative; sums over devices and processes have another order
PROMPTS = ({"prefix": "sea:"}, {"prefix": "dusk and dusk:"})


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A checkpoint with one layer of each kind: processes wait for each other in every layer."""
    kinds = ["sliding_attention", "full_attention"]
    directory = tmp_path_factory.mktemp("base")
    return tiny.write_base(directory, num_hidden_layers=2, layer_types=kinds)


@pytest.fixture(scope="module")
def config(base, rows, tmp_path_factory):
    """`config(steps=…)` writes a config that several processes share, with changes."""
    place = tmp_path_factory.mktemp("configs")

    def write(**changes) -> str:
        values = tiny.settings(
            base,
            rows,
            steps=STEPS,
            optim={"lr": 0.03},
            schedule={"name": "constant"},
            batch={"rows": 8, "max_length": 64, "buckets": (64,)},
            eval={"holdout": 8, "every": 4, "answers": 3},
            generate={"max_new_tokens": 4, "batch": 4},
            checkpoint={"every": 2},
            log={"every": 1},
        )
        file = place / f"{len(list(place.iterdir()))}.py"
        file.write_text(f"def get_config():\n    return {values | changes!r}\n")
        return str(file)

    return write


@dataclass
class Done:
    """Where commands left their results, and what each printed."""

    run: Path
    other: Path  # workdir of the commands that follow the run
    printed: list[list[str]]
    others: list[str] = field(default_factory=list)  # lines of all processes but the first


def commands(config: str, place: Path, adapter: Path) -> tuple[list[list[str]], Path, Path]:
    """A run, and an evaluation and answers of the adapter that another one may have written."""
    (place / "prompts.txt").write_text("".join(json.dumps(each) + "\n" for each in PROMPTS))
    workdir, other = place / "run", place / "other"
    common = ["--config", config, "--adapter", str(adapter), "--workdir", str(other)]
    found = [
        training(config, workdir),
        ["eval", *common, "--both"],
        ["generate", *common, "--file", str(place / "prompts.txt")],
    ]
    return found, workdir, other


@pytest.fixture(scope="module")
def spread(config, tmp_path_factory) -> Done:
    """What two processes with two devices each do."""
    place = tmp_path_factory.mktemp("spread")
    found, workdir, other = commands(config(), place, place / "run/export/adapter")
    export = ["export", "--config", found[0][-3], "--workdir", str(workdir)]
    first, second = run_all([*found, [*export, "--merged", "float32"]])
    others = [*itertools.chain.from_iterable(second.sections), *second.errors]
    return Done(workdir, other, first.sections, others)


@pytest.fixture(scope="module")
def single(config, spread, tmp_path_factory) -> Done:
    """What one device does; it evaluates the adapter of the other run."""
    place = tmp_path_factory.mktemp("single")
    found, workdir, other = commands(config(), place, spread.run / "export/adapter")
    return Done(workdir, other, [here(command) for command in found])


def here(command: list[str]) -> list[str]:
    """Runs a command in this process; returns the lines that it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert launch.main(command) == 0
    return out.getvalue().splitlines()


def losses(workdir: Path, kind: str = "train") -> list[float]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] == kind]


def answers(folder: Path) -> list[tuple]:
    lines = map(json.loads, (folder / "predictions.jsonl").read_text().splitlines())
    return [(line["row"], line["answer"], line["tokens"]) for line in lines]


@pytest.mark.slow
def test_two_processes_train_as_one_device(single, spread):
    for kind in ("train", "eval"):
        assert losses(spread.run, kind) == pytest.approx(losses(single.run, kind), rel=NEAR)
    for step in (0, 4, 8):
        found = answers(spread.run / f"eval/step-{step:06}")
        assert found == answers(single.run / f"eval/step-{step:06}")
    assert json.loads((spread.run / "summary.json").read_text())["verified"] is True
    assert any(line.startswith("step 8/8") for line in spread.printed[0])
    assert spread.others == []


@pytest.mark.slow
def test_two_processes_evaluate_generate_and_export_as_one(single, spread):
    for ours, theirs in zip(single.printed[1:], spread.printed[1:3], strict=True):
        assert [line.replace(str(spread.other), str(single.other)) for line in theirs] == ours
    folders = [each for each in (single.other / "eval").glob("*-*") if each.is_dir()]
    assert len(folders) == 2  # of the base and of the adapter
    for folder in folders:
        assert answers(spread.other / "eval" / folder.name) == answers(folder)
    found = [(each.other / "answers.json").read_bytes() for each in (single, spread)]
    assert found[0] == found[1]
    report = json.loads((spread.run / "export/merged/export.json").read_text())
    assert report["kept"] and report["comparison"]["alike"] == report["comparison"]["answers"]
    assert any(line.startswith("verified: ") for line in spread.printed[3])


def training(config: str, workdir: Path) -> list[str]:
    return ["train", "--no-plan", "--config", config, "--workdir", str(workdir)]


def killed(victim: int, command: list[str], workdir: Path) -> None:
    """Kills one of two processes in the midst of a run; the other must end by itself."""
    with started(command) as group:
        group.wait_for(workdir / "checkpoints/4")
        group[victim].send_signal(signal.SIGKILL)
        began = time.monotonic()
        other = group.ended()[1 - victim]
    assert time.monotonic() - began < 60
    (message,) = other.errors
    assert message.startswith(f"error: process {victim} of 2, on ") and " is lost: " in message
    assert "training resumes from step " in message and str(workdir / "checkpoints") in message
    assert other.code == 75 and "Traceback" not in other.err and "***" not in other.err


@pytest.mark.slow
def test_a_killed_first_process_ends_the_other(config, tmp_path):
    killed(0, training(config(steps=400, eval={}), tmp_path), tmp_path)


@pytest.mark.slow
def test_a_killed_process_ends_the_other_and_both_resume_to_the_bit(config, spread, tmp_path):
    """Although one of them cannot read the newest checkpoint: then neither resumes from it."""
    command = training(config(), tmp_path)
    killed(1, command, tmp_path)
    newest = Checkpoints(tmp_path / "checkpoints").steps[-1]
    more = [[], ["--unreadable", str(newest)]]
    first, _ = run_all([command], differing=more.__getitem__)
    assert f"resuming from step {newest - 2} in " in first.out
    assert "in process 1: [Errno 5] Input/output error" in first.out
    assert (tmp_path / DAMAGED / str(newest)).is_dir()
    assert contents(tmp_path) == contents(spread.run)


@pytest.mark.slow
def test_a_run_stopped_by_a_signal_to_one_goes_on_in_a_single_process(config, single, tmp_path):
    command = training(config(eval={"holdout": 8, "every": 4}), tmp_path)
    with started(command) as group:
        group.wait_for(tmp_path / "checkpoints/2")
        group[1].send_signal(signal.SIGTERM)
        ended = group.ended()
    assert [each.code for each in ended] == [143, 143], ended
    last = Checkpoints(tmp_path / "checkpoints").steps[-1]
    assert last < STEPS
    for each in ended:
        assert f"stopped by SIGTERM after step {last} of {STEPS}, saved as " in each.err
    assert any(f"resuming from step {last} in " in line for line in here(command))
    assert losses(tmp_path) == pytest.approx(losses(single.run), rel=NEAR)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["nowhere.jsonl", "other.jsonl"])
def test_an_error_on_one_host_ends_the_other(source, config, rows, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text("".join(rows.read_text().splitlines(keepends=True)[:-1]))
    if source == "other.jsonl":
        source, here = str(other), "the training rows differ between the hosts: process 1 found"
        there = here
    else:
        here, there = "nowhere.jsonl: no such file", ", has ended: nowhere.jsonl: no such file"
    more = [[], [f"--config.data.source={source}"]]
    command = training(config(), tmp_path / "run")
    with started(command, differing=more.__getitem__) as group:
        first, second = group.ended()
    assert (first.code, second.code) == (2, 2), (first, second)
    assert len(first.errors) == len(second.errors) == 1
    assert here in second.errors[0] and there in first.errors[0]


@pytest.mark.slow
@pytest.mark.parametrize("index, problem", enumerate(["joined within 1 seconds: 1", "reached at"]))
def test_nobody_at_the_address_is_one_message(index, problem, config):
    place = f"127.0.0.1:{processes.free_port()}"
    more = ["--coordinator", place, "--process-count", "2", "--join-timeout", "1"]
    ended = alone(["eval", "--config", config(), *more, "--process-index", str(index)], code=2)
    assert problem in ended.errors[0] and place in ended.errors[0]
    assert len(ended.err.splitlines()) == 1
