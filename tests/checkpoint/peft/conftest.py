"""An adapter on the disk and another base of its shapes, for several tests to damage or to try."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxtune
from tests.checkpoint.peft.adapters import adapted


@pytest.fixture
def directory(pair, tmp_path):
    """An adapter of one's own for `llama-linear`, to damage."""
    return jaxtune.save_adapter(
        adapted(made := pair("llama-linear")), tmp_path / "a", made.directory
    )


@pytest.fixture
def other(pair, tmp_path):
    """`other(0.01)`: llama-linear's checkpoint, with each number changed by such a share."""
    made = pair("llama-linear")

    def make(share: float):
        random = np.random.default_rng(0)
        changed = {
            name: (x * (1 + share * random.standard_normal(x.shape))).astype(x.dtype)
            for name, x in load_file(made.directory / "model.safetensors").items()
        }
        (tmp_path / "other").mkdir()
        save_file(changed, tmp_path / "other" / "model.safetensors")
        shutil.copy(made.directory / "config.json", tmp_path / "other")
        return jaxtune.load(tmp_path / "other")

    return make
