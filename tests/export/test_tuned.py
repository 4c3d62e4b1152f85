"""What a run's own record of its config is believed, and what is told where it is damaged."""

from types import SimpleNamespace

import pytest

from jaxtune.export import tuned
from jaxtune.workdir.errors import WorkdirError


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """`opened(content)` opens the checkpoints of a run with this config.json."""
    found = SimpleNamespace(steps=[3], directory=tmp_path / "checkpoints")
    monkeypatch.setattr(tuned, "Checkpoints", lambda directory: found)

    def opened(content):
        (tmp_path / "config.json").write_text(content)
        return tuned.run_checkpoints({"seed": 0}, tmp_path)

    return opened


def test_the_config_of_a_run(opened, tmp_path):
    assert opened('{"seed": 0}').steps == [3]
    with pytest.raises(WorkdirError, match="a run of another config; differences:\n  seed: 1 -> 0"):
        opened('{"seed": 1}')
    for content in ("[1]", "{", "\x00", "[" * 99_999):
        with pytest.raises(ValueError, match=r"config\.json is not valid"):
            opened(content)
    (tmp_path / "config.json").unlink()
    with pytest.raises(WorkdirError, match=r"config\.json is missing, .* run the training command"):
        tuned.run_checkpoints({"seed": 0}, tmp_path)
