"""Runs whose data, base and workdir are in an object store, and which are cut off."""

import contextlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxtune.config import load as configs
from jaxtune.display.errors import UserError
from jaxtune.display.progress import Quiet
from jaxtune.files.store import Store
from jaxtune.runs.run import fit
from jaxtune.workdir import lease, uploads
from jaxtune.workdir.index import Index
from jaxtune.workdir.mirror import bring, local_workdir
from tests import tiny
from tests.objects import WRITES, Killed, names, nth, put
from tests.runs.test_run import contents

RUN = "faulty://runs/x"
KILLS = int(os.environ.get("KILLS", "1"))  # of the run on S3
CUTS = os.environ.get("CUTS", "2,130")  # writes at which the store fails for good


def values(base, rows):
    return tiny.settings(
        base,
        rows,
        steps=6,
        trainable={"rank": 2, "dropout": 0.1},
        eval={"holdout": 4, "every": 2},
        checkpoint={"every": 1, "keep": 2},
        log={"every": 1},
        generate={"max_new_tokens": 4},
    )


@pytest.fixture(scope="module")
def whole(base, rows, tmp_path_factory):
    """What a local run that nothing stopped leaves."""
    workdir = tmp_path_factory.mktemp("whole") / "x"
    fit(configs.parse(values(base, rows)), workdir, progress=Quiet())
    return contents(workdir)


@pytest.fixture
def config(objects, machine, base, rows):
    put("faulty://data/base", base)
    Store("faulty://data").upload("rows.jsonl", rows)
    return configs.parse(values("faulty://data/base", "faulty://data/rows.jsonl"))


def left(url):
    """What a run has left in the store, as another machine gets it."""
    workdir = local_workdir(url)
    bring(workdir, ("checkpoints", "export"))
    found = contents(workdir)
    return alike(found)


def alike(found):
    """The files of the rows are named by where they are."""
    step, position, *rest = found
    position = {**position, "held_out": [], "loader": {**position["loader"], "files": []}}
    return [step, position, *rest]


def run(config):
    return fit(config, RUN, progress=Quiet())


@pytest.mark.slow
def test_a_run_in_a_store_leaves_what_a_local_one_does(config, machine, whole):
    summary = run(config)
    assert summary["exported"] == f"{RUN}/export/adapter"
    assert summary["checkpoints"] == [f"{RUN}/checkpoints/5", f"{RUN}/checkpoints/6"]
    there = {name.split("/")[1] for name in names(RUN) if name.startswith("checkpoints/")}
    assert there == {"5", "6"}
    machine("b")
    assert left(RUN) == alike(whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", [31, *map(int, CUTS.split(","))])
def test_a_run_cut_off_at_any_write_goes_on_from_an_empty_disk(
    number,
    config,
    objects,
    machine,
    whole,
    monkeypatch,
):
    monkeypatch.setattr(lease, "STALE", 0.0)
    monkeypatch.setattr(uploads, "POLL", 0.01)
    monkeypatch.setattr(uploads, "AGAIN", 0.0)
    objects.fault = nth(number, Killed)
    with contextlib.suppress(UserError):
        run(config)
    written = len([each for each, _ in objects.requests if each in WRITES])
    assert written >= number, "the run was not cut off"
    objects.fault = lambda request, path: None
    machine("b")
    run(config)
    machine("c")
    assert left(RUN) == alike(whole)


def launch(config, url, place, environment):
    """Starts a run on a machine with an empty disk."""
    command = [sys.executable, "launch.py", "train", "--config", str(config), "--workdir", url]
    return subprocess.Popen(
        [*command, "--take-over"],
        cwd=Path(__file__).parents[2],
        env=environment | {"JAXTUNE_CACHE": str(place)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def train_by_kills(config, url, tmp_path, environment, kills, seed=0):
    """Kills a run at random moments after a checkpoint is in the store, until it is left alone."""
    chance, there = random.Random(seed), Store(url)
    for number in range(kills):
        known = Index.of(there).steps
        while Index.of(there).steps in ({}, known):
            process = launch(config, url, tmp_path / str(number), environment)
            while process.poll() is None and Index.of(there).steps in ({}, known):
                time.sleep(0.05)
            # A start may find the store in too much trouble, and end; then it is tried again.
            assert process.poll() in (None, 0, 2), process.communicate()
        time.sleep(chance.uniform(0, 1))
        process.kill()
        process.communicate()
    process = launch(config, url, tmp_path / "last", environment)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


@pytest.mark.slow
def test_a_run_on_s3_that_is_killed_goes_on_from_an_empty_disk(
    s3, base, rows, whole, tmp_path, machine
):
    bucket, troubled, environment = s3
    put(f"{bucket}/base", base)
    Store(bucket).upload("rows.jsonl", rows)
    config = tmp_path / "config.py"
    settings = values(f"{bucket}/base", f"{bucket}/rows.jsonl")
    config.write_text(f"def get_config():\n    return {settings!r}\n")
    troubled.every, troubled.kinds, troubled.lag = 9, (500, 503, "reset", 0.3), 0.5
    output = train_by_kills(config, f"{bucket}/run", tmp_path, environment, KILLS)
    assert "resuming from step" in output
    assert min(troubled.met[kind] for kind in troubled.kinds) > 3
    troubled.every = troubled.lag = 0
    machine("other")
    assert left(f"{bucket}/run") == alike(whole)
