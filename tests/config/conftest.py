"""Config files written for tests."""

from pathlib import Path

import pytest

from tests.config.jobs import LEAST


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a config file, and makes its directory the current one."""
    monkeypatch.chdir(tmp_path)

    def written(text: str | bytes, name: str = "run.py") -> str:
        Path(name).write_bytes(text.encode() if isinstance(text, str) else text)
        return name

    return written


@pytest.fixture
def least(write):
    """The name of a file with what must be given, and no more."""
    return write(f"def get_config():\n    return {LEAST!r}\n")
