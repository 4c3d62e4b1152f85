"""The lock of a directory: one holder at a time, on every system."""

import json
import os
import shutil
import subprocess
import sys
import textwrap

import filelock
import pytest

from jaxtune.workdir import directory
from jaxtune.workdir.directory import (
    WorkdirError,
    begun,
    claim,
    locked_directory,
    run_directory,
)


def test_one_holder_at_a_time_and_the_next_one_after_it(tmp_path):
    place = tmp_path / "new" / "run"
    with (
        locked_directory(place, "run"),
        pytest.raises(WorkdirError, match=r"another run is using .*run; wait .* --workdir$"),
        locked_directory(place, "run"),
    ):
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


@pytest.mark.slow
def test_a_run_needs_no_module_that_windows_lacks(tmp_path):
    code = """
        import sys
        from pathlib import Path
        import jaxtune.runs.run  # imports what it needs of other packages, which know Windows
        for name in [each for each in sys.modules if each.startswith("jaxtune")]:
            del sys.modules[name]
        sys.modules |= dict.fromkeys(["fcntl", "resource", "termios", "pwd", "grp"])
        import jaxtune.cli.main, jaxtune.export.write, jaxtune.runs.run
        from jaxtune.runs import summary
        from jaxtune.workdir.directory import WorkdirError, locked_directory, run_directory
        print(summary.memory())
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
    claim(tmp_path)
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


def run_at(place, settings=None, **more):
    """Opens the directory of a run as training does."""
    with run_directory(place, settings or {}, **more) as workdir:
        workdir.adopt()
        return workdir


@pytest.mark.parametrize("name", ["metrics.jsonl", "preview.html", "summary.json", "photos/a.jpg"])
def test_a_directory_of_something_else_is_left_alone(name, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for enter in (claim, run_at):
        with pytest.raises(WorkdirError, match=rf"not empty .* contains {name.split('/')[0]};"):
            enter(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path / name).read_text() == "mine"


def test_what_is_in_nobody_s_way(tmp_path, monkeypatch):
    """An empty file, and the file that the program's output goes to, may be there before a run."""
    (tmp_path / "empty.txt").touch()
    with (tmp_path / "log.txt").open("w") as log:
        log.write("loading modules\n")
        log.flush()
        with pytest.raises(WorkdirError, match=r"contains log.txt;"):
            run_at(tmp_path)
        monkeypatch.setattr(sys, "stdout", log)
        run_at(tmp_path)
    assert (tmp_path / "run.json").is_file()


def test_a_directory_that_another_command_claimed_takes_a_run(tmp_path):
    claim(tmp_path / "x")
    (tmp_path / "x/preview.html").write_text("ours")
    assert run_at(tmp_path / "x").name.startswith("x-")


@pytest.mark.parametrize(
    "content, problem",
    [
        ("[1]", "run.json is not valid: expected a JSON object"),
        ("{", "run.json is not valid JSON"),
        ("[" * 100_000, "run.json is not valid JSON"),
        ('{"stands_on": Infinity}', "run.json is not valid JSON"),  # found by make hostile
        ('{"stands_on": 1e999}', "run.json is not valid JSON"),
        ("{}", "expected the date `started` and the text `name` of a run, found nothing"),
        ('{"started": 5, "name": "x"}', "expected the date `started`"),
        ('{"started": "2026-02-30", "name": "x"}', "expected the date `started`"),
        ('{"started": "2026-02-28", "name": null}', "found started, name; name another"),
    ],
)
def test_a_run_json_that_jaxtune_did_not_write(content, problem, tmp_path):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(WorkdirError, match=problem):
        run_at(tmp_path)
    assert (tmp_path / "run.json").read_text() == content


@pytest.mark.parametrize("name", ["run.json", "config.json", "metrics.jsonl"])
@pytest.mark.parametrize("make, kind", [(os.mkfifo, "a named pipe"), (os.mkdir, "a directory")])
def test_what_is_no_file_is_not_read(name, make, kind, tmp_path):
    """Reading a named pipe would wait for ever; found by `make hostile`."""
    if name != "run.json":
        stepped(tmp_path)
    if name == "metrics.jsonl":
        shutil.rmtree(tmp_path / "checkpoints")  # now only the journal says whether it has stepped
    (tmp_path / name).unlink(missing_ok=True)
    make(tmp_path / name)
    with pytest.raises(WorkdirError, match=f"{name} is {kind}, expected a regular file"):
        run_at(tmp_path, {"optim": {"lr": 0.1}}, accept_changes=True)


def stepped(place, **about):
    """Makes a directory look like one whose run has saved a checkpoint."""
    run_at(place, {"optim": {"lr": 0.1}}).note(**about)
    (place / "checkpoints/3").mkdir(parents=True)


def test_checkpoints_that_were_removed_are_missed(tmp_path):
    stepped(tmp_path, saved=True)
    (tmp_path / "checkpoints/3").rmdir()
    with pytest.raises(WorkdirError, match=r"checkpoints holds no checkpoint, though .* restore"):
        run_at(tmp_path, {"optim": {"lr": 0.1}})


def test_a_run_that_saved_none_starts_over(tmp_path):
    stepped(tmp_path)
    (tmp_path / "checkpoints/3").rmdir()
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "kind": "train"}\n')
    assert run_at(tmp_path, {"optim": {"lr": 0.1}}).stepped


def test_a_config_that_was_removed_is_missed(tmp_path):
    stepped(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(WorkdirError, match=r"config.json is missing, .* Restore it, pass --acc"):
        run_at(tmp_path, {"optim": {"lr": 0.2}})
    run_at(tmp_path, {"optim": {"lr": 0.2}}, accept_changes=True)
    assert json.loads((tmp_path / "config.json").read_text()) == {"optim": {"lr": 0.2}}


def test_a_new_run_that_cannot_start_leaves_nothing_that_is_seen(tmp_path):
    with pytest.raises(ValueError), run_directory(tmp_path, {"seed": 1}):
        assert (tmp_path / "run.json").exists()
        raise ValueError("the base is not there")
    assert [each for each in os.listdir(tmp_path) if not each.startswith(".")] == []
    with pytest.raises(ValueError), run_directory(tmp_path, {"seed": 1}):
        (tmp_path / "kernels").mkdir()
        raise ValueError("the rows are not there")
    assert (tmp_path / "run.json").exists()  # or else the directory would be another's
    with run_directory(tmp_path, {"seed": 1}) as workdir:
        workdir.adopt()


def test_a_directory_that_is_removed_while_it_is_used(tmp_path):
    with run_directory(tmp_path / "run", {}) as workdir:
        workdir.check()
        (tmp_path / "run").rename(tmp_path / "moved")
        with pytest.raises(WorkdirError, match="run was removed or replaced while the run was"):
            workdir.check()
        (tmp_path / "run").mkdir()
        (tmp_path / "run/.lock").touch()
        with pytest.raises(WorkdirError, match="run was removed or replaced while the run was"):
            workdir.check()


def test_the_date_of_a_run_is_that_of_its_start(tmp_path):
    """A directory that was claimed, or where no step was done, takes today's date."""
    today = run_at(tmp_path / "a").started
    for place in (tmp_path / "a", tmp_path / "b"):
        claim(place)
        (place / "run.json").write_text('{"started": "2026-01-02", "name": "x"}')
    assert (run_at(tmp_path / "a").started, begun(tmp_path / "b")) == (today, "2026-01-02")
    (tmp_path / "b/checkpoints/3").mkdir(parents=True)
    (tmp_path / "b/config.json").write_text("{}")
    assert run_at(tmp_path / "b").started == "2026-01-02"


def test_what_a_killed_process_was_writing_is_removed(tmp_path):
    claim(tmp_path)
    (tmp_path / ".config.json.partial-0123").write_text("{")
    (tmp_path / ".mine").write_text("mine")
    run_at(tmp_path)
    assert not list(tmp_path.glob("*partial*")) and (tmp_path / ".mine").exists()


def test_a_workdir_that_other_hosts_do_not_share(tmp_path, monkeypatch):
    monkeypatch.setattr(directory, "SLOW", 0.1)
    name = run_at(tmp_path / "shared").name
    run_at(tmp_path / "own")
    found = [directory._shared(tmp_path / each, name) for each in ("shared", "own", "missing")]
    assert found == [True, False, False]
