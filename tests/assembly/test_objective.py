"""Objectives of installed packages; those of files are tested with runs."""

from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from jaxtune.assembly import objective
from jaxtune.assembly.objective import objective_files, objective_of
from jaxtune.display.errors import UserError
from jaxtune.training.objectives import CROSS_ENTROPY, CrossEntropy


def theirs():
    return CrossEntropy()


def test_an_objective_of_an_installed_package(monkeypatch):
    entry = EntryPoint("theirs", f"{__name__}:theirs", objective.GROUP)
    monkeypatch.setattr(objective, "entry_points", lambda group: EntryPoints([entry]))
    assert objective_of("theirs") == CROSS_ENTROPY == objective_of("")
    assert objective_files("theirs") == [Path(__file__)] and objective_files("") == []
    with pytest.raises(UserError, match="'hers' is not one of 'theirs', 'a Python file with get_o"):
        objective_of("hers")
