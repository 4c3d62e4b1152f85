"""Runs whose files are replaced between two starts, or while they run."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxtune.checkpoint.formats.safetensors import Safetensors
from jaxtune.config import load as configs
from jaxtune.display.progress import Quiet
from jaxtune.export.write import export
from jaxtune.runs.run import fit
from jaxtune.workdir.errors import WorkdirError
from tests.runs.test_run import At, crash


@pytest.fixture
def own(base, tmp_path):
    """A copy of the base, for one test to change."""
    shutil.copytree(base, tmp_path / "base")
    return tmp_path / "base"


def negate(base: Path, part: str) -> None:
    file = base / "model.safetensors"
    weights = bytearray(file.read_bytes())
    for name, info in Safetensors.open(base).tensors.items():
        if part in name:
            values = np.frombuffer(weights[info.start : info.stop], info.dtype)
            weights[info.start : info.stop] = (-values).tobytes()
    file.write_bytes(weights)


@pytest.mark.slow
def test_other_weights_are_refused_by_all_that_read_the_run(own, make, tmp_path):
    config, workdir = make(("model.path", str(own))), tmp_path / "run"
    with pytest.raises(RuntimeError):
        fit(config, workdir, progress=At(7, crash))
    left = sorted(path.name for path in workdir.iterdir())
    negate(own, "layers.1.mlp.down")
    problem = r"(?s)begun with other files:\n  base: model.safetensors has the same size and other"
    with pytest.raises(WorkdirError, match=f"{problem}.*--accept-changes"):
        fit(config, workdir, progress=Quiet())
    with pytest.raises(WorkdirError, match=f"{problem}.*train again"):
        export(config, workdir, progress=Quiet())
    assert sorted(path.name for path in workdir.iterdir() if path.name != "export") == left
    fit(config, workdir, accept_changes=True, progress=Quiet())
    fit(config, workdir, progress=Quiet())  # they are the run's files from now on


@pytest.mark.slow
def test_another_tokenizer_is_refused(own, make, tmp_path):
    config, workdir = make(("model.path", str(own)), ("steps", 3)), tmp_path / "run"
    fit(config, workdir, progress=Quiet())
    file = own / "tokenizer_config.json"
    settings = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(settings | {"comment": "other"}))
    with pytest.raises(WorkdirError, match=r"tokenizer: tokenizer_config.json"):
        fit(config, workdir, progress=Quiet())


@pytest.mark.slow
def test_a_workdir_that_vanishes_stops_the_run(make, tmp_path):
    gone = At(5, lambda: os.rename(tmp_path / "run", tmp_path / "moved"))
    with pytest.raises((WorkdirError, OSError), match="run was removed or replaced"):
        fit(make(), tmp_path / "run", progress=gone)


@pytest.mark.slow
def test_runs_whose_checkpoints_are_deleted_are_not_begun_again(make, tmp_path):
    workdir = tmp_path / "run"
    with pytest.raises(RuntimeError):
        fit(make(), workdir, progress=At(8, crash))
    metrics = (workdir / "metrics.jsonl").read_bytes()
    shutil.rmtree(workdir / "checkpoints")
    with pytest.raises(WorkdirError, match="holds no checkpoint, though the run saved some"):
        fit(make(), workdir, progress=Quiet())
    assert (workdir / "metrics.jsonl").read_bytes() == metrics


def test_a_foreign_line_of_the_metrics_stops_before_weights_are_read(make, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "run.json").write_text('{"started": "2026-01-02", "name": "x"}')
    (workdir / "metrics.jsonl").write_text('{"step": 1, "kind": "train"}\n[1]\n')
    nowhere = configs.resolved(make()) | {"model": {"path": str(tmp_path / "none")}}
    with pytest.raises(WorkdirError, match=r"metrics.jsonl:2: expected a JSON object"):
        fit(configs.parse(nowhere), workdir, progress=Quiet())
