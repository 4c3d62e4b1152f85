"""What a command needs is built from a config."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from jaxtune.assembly.assemble import Assembly
from jaxtune.config.fields import ConfigError
from jaxtune.config.load import parse
from tests.config.jobs import LEAST


def test_epochs_of_more_steps_than_a_run_may_have_are_refused():
    """Counters on devices are 32 bits wide."""
    assembly = Assembly(parse(LEAST | dict(epochs=1e6)), Path("base"), "2026-11-21")
    assert assembly.total_steps(SimpleNamespace(steps_per_epoch=1000)) == 10**9
    with pytest.raises(ConfigError, match=r"1e\+06 epochs of 1,001 steps are 1,001,000,000 steps"):
        assembly.total_steps(SimpleNamespace(steps_per_epoch=1001))
