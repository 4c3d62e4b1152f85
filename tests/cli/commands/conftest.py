"""Commands as they are typed, from an empty directory."""

import pytest

import launch


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty directory to run in, and an environment that tests leave as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")


@pytest.fixture
def failure(capsys):
    """`failure("train", …)` is the one message of a command that fails, and nothing else."""

    def failure(*arguments):
        assert launch.main([str(argument) for argument in arguments]) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith("error: ") and "Traceback" not in printed.err
        return printed.err

    return failure


@pytest.fixture
def config(base, rows, tmp_path):
    """`config(data=dict(…))` writes x.py, a config of two steps with changes to its sections."""

    def write(**changes):
        values = {
            "steps": 2,
            "model": {"path": str(base)},
            "data": {"source": str(rows)},
            "batch": {"rows": 4, "max_length": 64, "packing": True},
        }
        for section, fields in changes.items():
            values[section] = {**values.get(section, {}), **fields}
        (tmp_path / "x.py").write_text(f"def get_config():\n    return {values!r}\n")
        return "x.py"

    return write
