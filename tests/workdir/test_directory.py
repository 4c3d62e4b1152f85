"""The lock of a directory: one holder at a time, on every system."""

import json
import os
import subprocess
import sys
import textwrap

import filelock
import pytest

from jaxtune.workdir.directory import WorkdirError, locked_directory, run_directory


def test_one_holder_at_a_time_and_the_next_one_after_it(tmp_path):
    place = tmp_path / "new" / "run"
    with locked_directory(place, "run"):
        with (
            pytest.raises(WorkdirError, match=r"another run is using .*run; wait .* --workdir$"),
            locked_directory(place, "run"),
        ):
            pass
        with locked_directory(place, "run", take=False):  # another process of the same group
            pass
    with locked_directory(place, "run"):
        pass


def test_a_lock_that_fails_within_the_block_is_another_s(tmp_path):
    with pytest.raises(filelock.Timeout), locked_directory(tmp_path, "run"):
        raise filelock.Timeout("elsewhere.lock")


def test_a_holder_that_is_killed_leaves_no_lock(tmp_path):
    code = """
        import os, sys
        from pathlib import Path
        from jaxtune.workdir.directory import locked_directory
        with locked_directory(Path(sys.argv[1]), "run"):
            os.kill(os.getpid(), 9)
    """
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    assert subprocess.run(command, env=environment).returncode == -9
    with locked_directory(tmp_path, "run"):
        assert (tmp_path / ".lock").exists()


def test_a_run_needs_no_module_that_windows_lacks(tmp_path):
    code = """
        import sys
        from pathlib import Path
        import jaxtune.runs.run  # imports what it needs of other packages, which know Windows
        for name in [each for each in sys.modules if each.startswith("jaxtune")]:
            del sys.modules[name]
        sys.modules |= dict.fromkeys(["fcntl", "resource", "termios", "pwd", "grp"])
        import jaxtune.cli.main, jaxtune.export.write, jaxtune.runs.run
        from jaxtune.runs import console
        from jaxtune.workdir.directory import WorkdirError, locked_directory, run_directory
        print(console.memory())
        with locked_directory(Path(sys.argv[1]), "run"):
            try:
                with locked_directory(Path(sys.argv[1]), "run"):
                    print("twice")
            except WorkdirError as error:
                print(error)
    """
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "{'bytes': None, 'of': 'this process'}",
        f"another run is using {tmp_path}; wait for it to end, or name another --workdir",
    ]


def test_a_config_is_kept_if_the_new_one_changes_the_result(tmp_path):
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    for rate, every in ((0.1, 5), (0.1, 9), (0.2, 9)):
        settings = {"optim": {"lr": rate}, "log": {"every": every}}
        with run_directory(tmp_path, settings, accept_changes=True) as workdir:
            workdir.adopt()
    kept = {path.name: json.loads(path.read_text()) for path in tmp_path.glob("config*.json")}
    assert kept == {
        "config.1.json": {"optim": {"lr": 0.1}, "log": {"every": 9}},
        "config.json": settings,
    }
