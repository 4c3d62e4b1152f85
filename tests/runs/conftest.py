"""A run that the tests of this folder share."""

import pytest

from jaxtune.config import load as configs
from jaxtune.display.progress import Quiet
from jaxtune.runs.run import fit

STEPS = 12


@pytest.fixture(scope="session")
def make(base, rows):
    """`make(("optim.lr", 1.0), …)` is the config of these tests with changes."""

    def make(*changes):
        values = {
            "steps": STEPS,
            "model": {"path": str(base)},
            "data": {"source": str(rows), "workers": 0},
            "trainable": {"rank": 2, "dropout": 0.1},
            "optim": {"lr": 0.03, "weight_decay": 0.1},
            "batch": {"rows": 4, "accumulate": 2, "max_length": 64, "packing": True},
            "eval": {"holdout": 8, "every": 4},
            "checkpoint": {"every": 3, "keep": 2},
            "log": {"every": 2},
            "generate": {"max_new_tokens": 4},  # of answers that exports are verified with
        }
        for key, value in changes:
            section, _, name = key.rpartition(".")
            (values.setdefault(section, {}) if section else values)[name] = value
        return configs.parse(values)

    return make


@pytest.fixture(scope="session")
def whole(make, tmp_path_factory):
    """A run that nothing stopped: its directory and summary."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    return workdir, fit(make(), workdir, progress=Quiet())
