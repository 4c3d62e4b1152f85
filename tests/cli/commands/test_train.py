"""`launch.py train`: what a person may get wrong ends in one message, and nothing is lost."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import launch

PALETTE = {"source": "rows.csv", "task": "palette"}


@pytest.mark.slow
def test_the_shortest_command_trains(config, capsys):
    assert launch.main(["--config", config(), "--config.steps=1", "--config.log.every=1"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^step 1/1  loss \d\.\d+", printed, re.MULTILINE)
    assert json.loads(Path("runs/x/summary.json").read_text())["steps"] == 1
    assert json.loads(Path("runs/x/config.json").read_text())["steps"] == 1
    assert Path("runs/x/export/adapter/adapter_config.json").is_file()


@pytest.mark.parametrize(
    "content, data, problem",
    [
        (b"", {}, "rows.jsonl: the file is empty"),
        (b'{"prefix": "a", "suffix": "b"}\n{"prefix"\n', {}, r"rows.jsonl:2: "),
        (b'{"prefix": "a", "sufix": "b"}\n', {}, "rows.jsonl:1: no column 'suffix'"),
        (b'{"prefix": "a", "suffix": "\xff\xfe"}\n', {}, r"rows.jsonl:1: .*UTF-8"),
        (b'{"prefix": "%s", "suffix": "b"}\n' % (b"word " * 90), {}, r"jsonl:1: the row has \d+"),
        (b'{"prefix": "a", "suffix": ""}\n', {}, "rows.jsonl:1: no token is scored: the suffix is"),
        (b'"text"\n', {}, r"rows.jsonl:1: "),
        (b"description,colors\na sea,blue\n", PALETTE, "rows.csv:2: column 'colors' is 'blue';"),
        (b"description\na sea\n", PALETTE, "rows.csv:2: no column 'colors'"),
        (b"x", {"source": "nowhere.jsonl"}, "nowhere.jsonl: no such file; did you"),
        (b"x", {"source": "*.parquet"}, r"\*.parquet: no file matches"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_trained_on(content, data, problem, config, failure):
    name = data.get("source", "rows.jsonl")
    Path(name if "row" in name else "rows.jsonl").write_bytes(content)
    message = failure("train", "--config", config(data={"source": "rows.jsonl", **data}))
    assert re.search(problem, message), message
    assert not Path("runs/x/checkpoints").exists() and not Path("runs/x/metrics.jsonl").exists()


@pytest.mark.parametrize(
    "changes, problem",
    [
        (["--config.optim.lrr=1"], "optim.lrr (command line): no such field; did you mean"),
        (["--config.optim.lr=fast"], "optim.lr (command line): found 'fast', expected number"),
        (["--config.data.task=pallette"], "data.task 'pallette' is not one of 'alpaca',"),
        (["--config.model.path=./nowhere"], "'./nowhere': no such directory or file"),
        (["--config.mesh.fsdp=3"], "expected sizes whose product is the device count"),
        (["--config.trainable.targets=['layers/attn/z/w']"], "these rules apply to no leaf"),
        (["--config.trainable.kind=rules", "--config.trainable.rules=[('.*', False)]"],
         "the rules select no leaf to train"),
        (["--config.log.wandb=project"], "wandb"),
        (["--bogus"], "'--bogus': launch.py train has no such option; see launch.py train --help"),
    ],
)  # fmt: skip
def test_configs_that_make_no_run(changes, problem, config, failure, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert problem in failure("--config", config(), *changes)


def test_a_workdir_that_cannot_be_written(config, failure):
    Path("file").touch()
    message = failure("--config", config(), "--workdir", "file/run")
    assert (
        "file/run cannot be written: Not a directory; choose another path with --workdir" in message
    )


@pytest.mark.slow
def test_a_run_of_another_config(config, failure):
    assert launch.main(["--config", config(), "--workdir", "here"]) == 0
    before = Path("here/metrics.jsonl").read_bytes(), Path("here/config.json").read_bytes()
    message = failure("--config", config(optim={"lr": 1.0}), "--workdir", "here")
    assert "here holds a run of another config; differences:\n  optim.lr: 0.0001 -> 1.0" in message
    assert (
        Path("here/metrics.jsonl").read_bytes(),
        Path("here/config.json").read_bytes(),
    ) == before


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.slow
def test_a_disk_that_fills_up(config, failure, small_disk):
    options = ("--config", config(checkpoint={"every": 1}), "--workdir", small_disk / "run")
    assert launch.main([*map(str, options), "--config.steps=1"]) in (0, 2)
    Path(small_disk / "filler").write_bytes(b"x" * (small_disk_left(small_disk) - 65536))
    message = failure(*options, "--accept-changes", "--config.steps=30")
    assert "No space left" in message or "could not be written" in message, message
    steps = [path.name for path in (small_disk / "run/checkpoints").iterdir()]
    Path(small_disk / "filler").unlink()
    assert all(name.isdecimal() or "tmp" in name for name in steps)


def small_disk_left(place: Path) -> int:
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize
