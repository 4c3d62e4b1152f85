"""Samples of a checkpoint's content: a change in any tensor, in any layer, changes its digest."""

import json
import os
import shutil

import numpy as np
import pytest

from jaxtune.checkpoint import content
from jaxtune.checkpoint.formats.npz import Npz
from jaxtune.checkpoint.formats.safetensors import Safetensors


def digests(place):
    return {name: found[:2] for name, found in content.of_checkpoint(place).items()}


def test_any_tensor_that_changes_is_told(base, tmp_path):
    place = tmp_path / "base"
    shutil.copytree(base, place)
    before, file = digests(place), place / "model.safetensors"
    assert set(before) == {"config.json", "model.safetensors"}
    weights = file.read_bytes()
    for name, info in Safetensors.open(place).tensors.items():
        negative = -np.frombuffer(weights[info.start : info.stop], info.dtype)
        file.write_bytes(weights[: info.start] + negative.tobytes() + weights[info.stop :])
        assert digests(place)["model.safetensors"] != before["model.safetensors"], name
    file.write_bytes(weights)
    os.utime(file, (0, 0))
    assert digests(place) == before and content.of_checkpoint(place)["model.safetensors"][2] == 0


def test_a_config_that_changes_is_told(base, tmp_path):
    shutil.copytree(base, tmp_path / "base")
    before, file = digests(tmp_path / "base"), tmp_path / "base/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rope_theta": 5.0}))
    after = digests(tmp_path / "base")
    assert [name for name in before if before[name] != after[name]] == ["config.json"]


@pytest.mark.parametrize("layer", [0, 6, 10, 26])
def test_each_layer_of_a_stacked_leaf_is_sampled(layer, tmp_path):
    """Files of big_vision hold all layers of a leaf in one array."""
    stacked = np.random.default_rng(0).normal(size=(27, 40, 30)).astype(np.float32)
    for name in ("before", "after"):
        np.savez(tmp_path / f"{name}.npz", **{"params/w": stacked})
        stacked[layer] *= -1
    infos = (Npz.open(tmp_path / f"{name}.npz").tensors for name in ("before", "after"))
    found = [
        content._sampled(tmp_path / f"{name}.npz", list(tensors.values()))
        for name, tensors in zip(("before", "after"), infos, strict=True)
    ]
    assert found[0][1] != found[1][1]
