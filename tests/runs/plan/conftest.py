"""One tiny run that the tests of plans share: its parts, its rows and its planner."""

import contextlib
from dataclasses import replace

import pytest

from jaxtune.assembly.assemble import Assembly
from jaxtune.config import load as configs
from jaxtune.display.progress import Quiet
from jaxtune.runs.plan.plan import Planner
from jaxtune.runs.plan.targets import at_hand
from jaxtune.runs.rows import RunRows
from tests import tiny


@pytest.fixture(scope="session")
def prepared(base, rows):
    """`prepared(eval=…)` is the planner of the tiny config with changes to its sections."""
    with contextlib.ExitStack() as stack:

        def make(**changes) -> Planner:
            config = configs.parse(tiny.settings(base, rows, **changes))
            assembly = Assembly.of_headers(config, "2026-01-01")
            read = RunRows.read(assembly, Quiet(), stack)
            return Planner(assembly, read, at_hand(), Quiet())

        yield make


@pytest.fixture(scope="session")
def planner(prepared):
    """The planner of a run that only trains: one program of four lines of 64 tokens."""
    return prepared()


@pytest.fixture(scope="session")
def whole(prepared):
    """The plan of a run that trains, evaluates and answers, and its planner."""
    planner = prepared(
        eval={"holdout": 8, "answers": 3, "every": 4}, generate={"max_new_tokens": 5}
    )
    return planner, planner.plan({})


@pytest.fixture
def limited(planner):
    """`limited(bytes)` is the planner for devices of so much memory."""

    def make(limit: int) -> Planner:
        return replace(planner, target=replace(planner.target, limit_bytes=limit), _known={})

    return make
