"""Fixtures that several test files of the export share."""

import hashlib
import json

import numpy as np
import pytest

import jaxtune
from jaxtune.export import verify
from jaxtune.export.targets import Wanted
from tests.export.cards import SUMMARY, exported, judged


@pytest.fixture
def workdir(tmp_path):
    """A run's directory with all that a card reads."""
    place = tmp_path / "palettes"
    adapter = place / "export" / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    about = place / "eval" / "tuned-1" / "about.json"
    about.parent.mkdir(parents=True)
    about.write_text(json.dumps({"tuned": [["adapter_model.safetensors", digest]]}))
    for name, content in {
        "run.json": {"started": "2026-01-02", "name": "palettes-1"},
        "summary.json": SUMMARY,
        "eval.json": judged(place),
        "export/adapter/export.json": exported(place),
    }.items():
        (place / name).write_text(json.dumps(content))
    lines = [
        {"step": 0, "kind": "eval", "loss": 6.0},
        *({"step": step, "kind": "train", "loss": 6 / step} for step in range(1, 9)),
        {"step": 8, "kind": "eval", "loss": 2.0},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (place / "metrics.jsonl").write_text(text + '{"step": 9, "ki')
    np.savez(place / ".train.npz", lengths=np.asarray([10, 30]), scored=np.asarray([4, 6]))
    return place


@pytest.fixture(scope="module")
def given(base):
    return verify.random_rows(jaxtune.load(base)[0], count=2, new=4)


@pytest.fixture
def adapter(tmp_path):
    return Wanted(tmp_path / "adapter")


@pytest.fixture
def merged(tmp_path):
    return Wanted(tmp_path / "merged", merged=True, dtype="float16")
