"""The small parts of `launch.py inspect`; the report has tests of its own."""

import pytest

from jaxtune.commands.inspect import checkpoint_name


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("maker/model@refs/pr/1", "model"),
        ("google/gemma-3-270m", "gemma-3-270m"),
        ("google/gemma-3-270m@main", "gemma-3-270m"),
        (".", "here"),
        ("../here/", "here"),
    ],
)
def test_default_workdir(source, name, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert checkpoint_name(source) == name
