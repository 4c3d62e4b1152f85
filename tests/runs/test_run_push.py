"""A run that pushes what it tuned to a Hub on this machine."""

import json
import re
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

import launch
from jaxtune.assembly.assemble import Assembly
from tests import tiny
from tests.loopback import READER, TOKEN, Trouble
from tests.pushes import child, hub_on_this_machine


@pytest.fixture
def server(tmp_path, monkeypatch):
    with hub_on_this_machine(tmp_path, monkeypatch) as running:
        yield running


@pytest.fixture
def config(base, rows, tmp_path, monkeypatch):
    """`config(every="save")` writes x.py, a config that pushes, with changes to what it says."""
    monkeypatch.chdir(tmp_path)

    def write(repo="me/price-{name}", trainable=(("rank", 2),), **hub):
        values = tiny.settings(
            base,
            rows,
            trainable=dict(trainable),
            checkpoint={"every": 2},
            eval={"holdout": 8, "every": 4},
            hub={"repo": repo, "wait": 20, **hub},
            generate={"max_new_tokens": 4},
        )
        (tmp_path / "x.py").write_text(f"def get_config():\n    return {values!r}\n")
        return "x.py"

    return write


def contents(directory):
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def name_of(workdir=Path("runs/x")):
    return "me/price-" + json.loads((workdir / "run.json").read_text())["name"]


def nothing_secret(printed, workdir=Path("runs")):
    """The token is in no file of a run and in nothing that it said."""
    assert TOKEN not in printed
    files = [file for file in workdir.rglob("*") if file.is_file()]
    assert files and not any(TOKEN.encode() in file.read_bytes() for file in files)


@pytest.mark.slow
def test_a_run_pushes_its_adapter(config, server, capsys):
    assert launch.main(["--config", config()]) == 0
    name = name_of()
    assert re.fullmatch(r"me/price-x-\d{4}-\d\d-\d\d_\d\d\.\d\d\.\d\d-[0-9a-f]{4}", name)
    found = server.repositories[name]
    assert found.private and found.files == contents(Path("runs/x/export/adapter"))
    assert re.fullmatch(r"step 4, held-out loss \d\.\d{4}", *found.commits)
    summary = json.loads(Path("runs/x/summary.json").read_text())
    assert summary["repository"] == name
    assert summary["pushed"] == f"{server.url}/{name}/commit/{1:040x}"
    printed = capsys.readouterr().out
    assert summary["pushed"] in printed
    nothing_secret(printed)
    assert launch.main(["--config", config()]) == 0  # which is finished: to the same repository
    assert list(server.repositories) == [name] and found.files == contents(
        Path("runs/x/export/adapter")
    )


@pytest.mark.slow
def test_a_run_pushes_at_every_save_and_goes_on_where_it_was_pushed(config, server, capsys):
    """Its metrics are those of a run that pushes nothing."""
    options = ["--config", config(every="save"), "--config.checkpoint.every=1"]
    server.troubles.append(Trouble("/commit/", 1))
    assert launch.main([*options, "--workdir=runs/x", "--config.steps=3"]) == 0
    found = server.repositories[name_of()]
    assert found.commits[-1].startswith("step 3, held-out loss ")
    assert all(re.match(r"step [123], ", each) for each in found.commits)
    assert launch.main([*options, "--workdir=runs/x", "--accept-changes", "--config.steps=5"]) == 0
    assert found.commits[-1].startswith("step 5, ") and len(server.repositories) == 1
    assert found.files == contents(Path("runs/x/export/adapter"))
    assert not any(Path("runs/x/.push").iterdir())
    nothing_secret(capsys.readouterr().out)
    silent = ["--config", config(repo=""), "--config.checkpoint.every=1", "--workdir=runs/y"]
    assert launch.main([*silent, "--config.steps=3"]) == 0
    assert launch.main([*silent, "--accept-changes", "--config.steps=5"]) == 0
    assert Path("runs/x/metrics.jsonl").read_bytes() == Path("runs/y/metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_a_hub_that_fails_never_stops_a_run(config, server, capsys):
    server.troubles.append(Trouble("/commit/", 10**6))
    assert launch.main(["--config", config(every="save", wait=1)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("(will retry)") == 1 and "to push it yourself: " in printed
    assert json.loads(Path("runs/x/summary.json").read_text())["pushed"] is None
    nothing_secret(printed)


@pytest.mark.slow
def test_whole_weights_are_pushed_at_the_end(config, server):
    whole = config(trainable={"kind": "full"}, every="save")
    assert launch.main(["--config", whole, "--config.checkpoint.best=False"]) == 0
    assert server.repositories[name_of()].files == contents(Path("runs/x/export/merged"))


@pytest.mark.parametrize("token", ["hf_WrongWrong", READER, ""])
def test_a_token_that_cannot_push_stops_a_run_before_it_begins(
    token, config, server, monkeypatch, capsys
):
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(Assembly, "base", lambda *_: pytest.fail("weights were read"))
    assert launch.main(["--config", config()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: hub.repo is 'me/price-{name}': ") and "HF_TOKEN" in error
    assert not token or token not in error
    assert not Path("runs").exists() and not server.repositories


def test_a_repository_that_is_not_ours_stops_a_run_before_it_begins(
    config, server, monkeypatch, capsys
):
    monkeypatch.setattr(Assembly, "base", lambda *_: pytest.fail("weights were read"))
    assert launch.main(["--config", config(repo="stranger/price-{name}")]) == 2
    assert "the token has no write access" in capsys.readouterr().err
    assert not Path("runs/x/metrics.jsonl").exists()


def test_a_hub_that_is_not_reached_stops_a_run_before_it_begins(
    config, server, monkeypatch, capsys
):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert launch.main(["--config", config()]) == 2
    error = capsys.readouterr().err
    assert "ConnectError" in error and "To train without pushing, add --config.hub.repo=" in error
    assert not Path("runs").exists()


@pytest.mark.slow
def test_a_run_in_a_process_of_its_own(config, server):
    """Nothing but the environment says where the Hub is and whose the token."""
    running = child(server, "--config", config(repo="price-{name}", every="save"))
    printed = "".join(running.communicate())
    assert running.returncode == 0, printed
    assert server.repositories[name_of()].files == contents(Path("runs/x/export/adapter"))
    nothing_secret(printed)


@pytest.mark.slow
def test_a_hub_that_hangs_keeps_no_run_from_ending(config, server):
    server.troubles.append(Trouble("preupload", 10**6, seconds=30))
    begun = time.monotonic()
    running = child(server, "--config", config(wait=1))
    printed = "".join(running.communicate())
    assert running.returncode == 0 and "not pushed: the Hub took longer than hub.wait" in printed
    assert time.monotonic() - begun < 60
