"""Commands of several processes, over loopback: they do what one process does, or end together."""

import json
import signal
import time
from pathlib import Path

import pytest

from tests import processes, tiny
from tests.processes import Ended, alone, run, started
from tests.runs.test_run import contents

STEPS = 6
NEAR = 1e-5  # relative; sums over devices and processes have another order


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
            batch={"rows": 8, "max_length": 64},
            eval={"holdout": 8, "every": 3, "answers": 3},
            generate={"max_new_tokens": 8, "batch": 4},
            checkpoint={"every": 2},
            log={"every": 1},
        )
        file = place / f"{len(list(place.iterdir()))}.py"
        file.write_text(f"def get_config():\n    return {values | changes!r}\n")
        return str(file)

    return write


@pytest.fixture(scope="module")
def single(config, tmp_path_factory) -> tuple[str, Path]:
    """The config and the workdir of a run on one device."""
    file, workdir = config(), tmp_path_factory.mktemp("single") / "run"
    alone(["train", "--config", file, "--workdir", str(workdir)])
    return file, workdir


@pytest.fixture(scope="module")
def spread(config, tmp_path_factory) -> tuple[str, Path, list[Ended]]:
    """The same of two processes with two devices each, and what they printed."""
    file, workdir = config(), tmp_path_factory.mktemp("spread") / "run"
    return file, workdir, run(["train", "--config", file, "--workdir", str(workdir)])


def losses(workdir: Path, kind: str = "train") -> list[float]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] == kind]


def answers(folder: Path) -> list[tuple]:
    lines = map(json.loads, (folder / "predictions.jsonl").read_text().splitlines())
    return [(line["row"], line["answer"], line["tokens"]) for line in lines]


def printed(ended: Ended) -> list[str]:
    """What a process printed; Gloo reports its connections on standard output."""
    return [line for line in ended.out.splitlines() if not line.startswith("[Gloo]")]


@pytest.mark.slow
def test_two_processes_train_as_one_device(single, spread):
    (_, one), (_, two, ended) = single, spread
    for kind in ("train", "eval"):
        assert losses(two, kind) == pytest.approx(losses(one, kind), rel=NEAR)
    for step in (0, 3, 6):
        assert answers(two / f"eval/step-{step:06}") == answers(one / f"eval/step-{step:06}")
    assert json.loads((two / "summary.json").read_text())["verified"] is True
    assert any(line.startswith("step 6/6") for line in printed(ended[0]))
    assert not printed(ended[1]) and not ended[1].errors


@pytest.mark.slow
def test_two_processes_evaluate_generate_and_export_as_one(spread, tmp_path):
    file, workdir, _ = spread
    common = ["--config", file, "--adapter", str(workdir / "export/adapter"), "--workdir"]
    prompts = tmp_path / "prompts.txt"
    prompts.write_text('{"prefix": "sea:"}\n{"prefix": "dusk and dusk:"}\n')
    for command, more in (("eval", ["--both"]), ("generate", ["--file", str(prompts)])):
        one = alone([command, *common, str(tmp_path / "one"), *more])
        first, second = run([command, *common, str(tmp_path / "two"), *more])
        told = [line.replace("/two/", "/one/") for line in printed(first)]
        assert told == one.out.splitlines() and not printed(second)
    for folder in (tmp_path / "one/eval").glob("*-*"):
        if folder.is_dir():
            assert answers(tmp_path / "two/eval" / folder.name) == answers(folder)
    given = [(tmp_path / name / "answers.json").read_bytes() for name in ("one", "two")]
    assert given[0] == given[1]
    ended = run(["export", "--config", file, "--workdir", str(workdir), "--merged", "float32"])
    report = json.loads((workdir / "export/merged/export.json").read_text())
    assert report["kept"] and report["comparison"]["alike"] == report["comparison"]["answers"]
    assert any(line.startswith("verified: ") for line in printed(ended[0]))
    assert not printed(ended[1])


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_and_both_resume_to_the_bit(victim, spread, tmp_path):
    file, whole, _ = spread
    workdir = tmp_path / "run"
    command = ["train", "--config", file, "--workdir", str(workdir)]
    with started(command) as group:
        wait_for(workdir / "checkpoints/2", group)
        group[victim].send_signal(signal.SIGKILL)
        began = time.monotonic()
        other = group.ended()[1 - victim]
    assert time.monotonic() - began < 60
    (message,) = other.errors
    assert message.startswith(f"error: process {victim} of 2, on ") and " is lost: " in message
    assert "training resumes from step " in message and str(workdir / "checkpoints") in message
    assert other.code == 75 and "Traceback" not in other.err and "***" not in other.err
    run(command)
    assert contents(workdir) == contents(whole)


@pytest.mark.slow
def test_a_signal_to_one_saves_in_both(config, tmp_path):
    workdir = tmp_path / "run"
    command = ["train", "--config", config(steps=4000), "--workdir", str(workdir)]
    with started(command) as group:
        wait_for(workdir / "checkpoints/2", group)
        group[1].send_signal(signal.SIGTERM)
        ended = group.ended()
    assert [each.code for each in ended] == [143, 143], ended
    last = max(int(each.name) for each in (workdir / "checkpoints").iterdir())
    for each in ended:
        assert f"stopped by SIGTERM after step {last} of 4,000, saved as " in each.err


@pytest.mark.slow
def test_an_error_on_one_host_ends_the_other(config, rows, tmp_path):
    """Before the first step, and in the midst of the run."""
    other = tmp_path / "other.jsonl"
    other.write_text("".join(rows.read_text().splitlines(keepends=True)[:-1]))
    for source, here, there in (
        (
            "nowhere.jsonl",
            "nowhere.jsonl: no such file",
            ", has ended: nowhere.jsonl: no such file",
        ),
        (str(other), "the training rows differ between the hosts: process 1", "process 1 found"),
    ):
        more = [[], [f"--config.data.source={source}"]]
        command = ["train", "--config", config(), "--workdir", str(tmp_path / "run")]
        with started(command, differing=more.__getitem__) as group:
            first, second = group.ended()
        assert (first.code, second.code) == (2, 2), (first, second)
        assert len(first.errors) == len(second.errors) == 1
        assert here in second.errors[0] and there in first.errors[0]


@pytest.mark.slow
def test_a_run_goes_on_with_other_devices_and_processes(single, config, tmp_path):
    file, one = single
    for name, parts in {
        "devices": [(1, 8), (1, 4), (1, 1)],
        "processes": [(2, 2), (1, 2), (1, 1)],
    }.items():
        for number, (count, each) in enumerate(parts, 1):
            command = ["train", "--config", file, "--workdir", str(tmp_path / name)]
            command += ["--accept-changes", f"--config.steps={STEPS * number // 3}"]
            run(command, count, each) if count > 1 else alone(command, each)
        assert losses(tmp_path / name) == pytest.approx(losses(one), rel=NEAR)


def test_nobody_at_the_address_is_one_message(config):
    place = f"127.0.0.1:{processes.free_port()}"
    more = ["--coordinator", place, "--process-count", "2", "--join-timeout", "1"]
    for index, problem in enumerate(["have not joined within 1 seconds: 1", f"reached at {place}"]):
        command = ["eval", "--config", config(), *more, "--process-index", str(index)]
        ended = alone(command, code=2)
        assert problem in ended.errors[0] and len(ended.err.splitlines()) == 1


def wait_for(file: Path, group: processes.Started) -> None:
    while not file.exists():
        assert all(each.poll() is None for each in group.processes), group.ended()
        time.sleep(0.05)
