"""checkpoint/writing: what is written appears whole or not at all, whoever is killed meanwhile."""

import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxtune.checkpoint.formats import writing
from jaxtune.checkpoint.formats.safetensors import write_sharded
from jaxtune.checkpoint.formats.tensors import CheckpointError
from jaxtune.checkpoint.formats.writing import new_directory, new_file

HOST = socket.gethostname()
CAPTURED = {"capture_output": True, "text": True, "check": True}


def test_blocks_are_small_and_complete(monkeypatch):
    monkeypatch.setattr(writing, "BLOCK_BYTES", 100)
    array = np.arange(60, dtype=np.float32).reshape(5, 12).T
    blocks = list(writing.blocks(array))
    assert [block.nbytes for block in blocks] == [100, 100, 40]
    assert np.array_equal(np.concatenate(blocks), array)


# New directories


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def checkpoint(directory):
    """What overwriting may replace, as far as it looks."""
    directory.mkdir()
    (directory / "config.json").write_text("old")
    return directory


def test_new_directory_appears_when_complete(tmp_path):
    final = tmp_path / "deeper" / "export"
    with new_directory(final) as partial:
        assert partial == final.with_name(f".export.partial-{HOST}-{os.getpid()}")
        (partial / "inner").mkdir()
        (partial / "inner" / "config.json").write_text("{}")
        assert not final.exists()
    assert (final / "inner" / "config.json").read_text() == "{}"
    assert names(final.parent) == ["export"]


def test_new_directory_is_on_the_disk_before_it_has_its_name(tmp_path, synced):
    with new_directory(tmp_path / "export") as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "config.json").write_text("{}")
    tree = [tmp_path, *tmp_path.rglob("*")]
    assert len(tree) == 4
    assert synced == {path.stat().st_ino for path in tree}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("overwrite", [False, True])
def test_failure_leaves_everything_as_it_was(tmp_path, error, overwrite):
    final = tmp_path / "export"
    if overwrite:
        checkpoint(final)
    with pytest.raises(error), new_directory(final, overwrite) as partial:
        (partial / "new").write_text("new")
        raise error
    assert names(tmp_path) == (["export"] if overwrite else [])
    assert not overwrite or names(final) == ["config.json"]


def test_killed_process_leaves_nothing_under_the_final_name(tmp_path):
    script = (
        "import os, signal, sys\n"
        "from jaxtune.checkpoint.formats.writing import new_directory\n"
        "with new_directory(sys.argv[1], overwrite=True) as partial:\n"
        "    (partial / 'half').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    final = checkpoint(tmp_path / "export")
    root = Path(writing.__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", script, str(final)], cwd=root, check=False)
    assert done.returncode == -signal.SIGKILL
    assert names(final) == ["config.json"]
    assert [name.split("-")[0] for name in names(tmp_path)] == [".export.partial", "export"]


def test_leftovers_of_a_killed_process_do_not_come_back(tmp_path):
    leftover = tmp_path / f".export.partial-{HOST}-{os.getpid()}"
    leftover.mkdir()
    (leftover / "half").write_text("half")
    with new_directory(tmp_path / "export") as partial:
        (partial / "whole").write_text("whole")
    assert names(tmp_path / "export") == ["whole"]


def test_existing_directory_is_refused_before_any_work(tmp_path):
    (tmp_path / "old").write_text("old")
    with (
        pytest.raises(CheckpointError, match=r"already exists and is not empty: .* overwrite=True"),
        new_directory(tmp_path),
    ):
        pytest.fail("the block ran")
    assert names(tmp_path) == ["old"]


def test_directory_that_fills_meanwhile_is_kept(tmp_path):
    final = tmp_path / "export"
    with pytest.raises(CheckpointError, match="already exists"), new_directory(final) as partial:
        (partial / "mine").write_text("mine")
        final.mkdir()
        (final / "theirs").write_text("theirs")
    assert names(tmp_path) == ["export"]
    assert names(final) == ["theirs"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (["thesis.tex"], "it has no config.json, only thesis.tex"),
        (["config.json", "run-1/model.safetensors"], "it contains run-1"),
        (["run-1/config.json"], "it contains run-1"),
    ],
)
def test_only_a_checkpoint_is_overwritten(tmp_path, content, problem):
    final = tmp_path / "export"
    for name in content:
        (final / name).parent.mkdir(parents=True, exist_ok=True)
        (final / name).write_text("mine")
    with (
        pytest.raises(CheckpointError, match=rf"does not look like a checkpoint \({problem}\)"),
        new_directory(final, overwrite=True),
    ):
        pytest.fail("the block ran")
    assert all((final / name).read_text() == "mine" for name in content)


def test_an_empty_directory_may_be_overwritten(tmp_path):
    (tmp_path / "export").mkdir()
    with new_directory(tmp_path / "export", overwrite=True) as partial:
        (partial / "new").write_text("new")
    assert names(tmp_path / "export") == ["new"]


def test_leftovers_of_dead_processes_are_removed(tmp_path):
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], **CAPTURED)
    dead, alive = int(done.stdout), os.getppid()
    kept = [
        f".export.partial-{HOST}-{alive}",
        f".export.partial-{HOST}-1",  # another user's, unless the tests run as root
        f".export.partial-{HOST}-0",
        f".export.partial-elsewhere-{dead}",  # of a process on another host
        f".export.partial-{HOST}-99999999999999999999",
        f".export.partial-{HOST}-notes",
        f".exported.partial-{HOST}-{dead}",
    ]
    for name in (*kept, f".export.partial-{HOST}-{dead}"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("half")
    with new_directory(tmp_path / "export"):
        pass
    assert names(tmp_path) == sorted([*kept, "export"])


def test_empty_directory_is_filled(tmp_path):
    (tmp_path / "export").mkdir()
    with new_directory(tmp_path / "export") as partial:
        (partial / "new").write_text("new")
    assert names(tmp_path / "export") == ["new"]
    assert names(tmp_path) == ["export"]


def test_file_in_the_way(tmp_path):
    (tmp_path / "export").write_text("a file")
    for overwrite in (False, True):
        with (
            pytest.raises(CheckpointError, match="export is a file"),
            new_directory(tmp_path / "export", overwrite),
        ):
            pytest.fail("the block ran")
    with (
        pytest.raises(CheckpointError, match="cannot be written"),
        new_directory(tmp_path / "export" / "in"),
    ):
        pytest.fail("the block ran")


def test_overwrite_keeps_the_old_one_until_the_new_one_is_complete(tmp_path):
    final = checkpoint(tmp_path / "export")
    with new_directory(final, overwrite=True) as partial:
        (partial / "new").write_text("new")
        assert names(final) == ["config.json"]
    assert names(final) == ["new"]
    assert names(tmp_path) == ["export"]


def test_old_directory_comes_back_if_the_new_one_cannot_be_moved_in(tmp_path, monkeypatch):
    final = checkpoint(tmp_path / "export")
    rename = Path.rename

    def fail_for_partial(self, target):
        if ".partial-" in self.name:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_partial)
    with pytest.raises(OSError, match="Input/output"), new_directory(final, overwrite=True):
        pass
    assert names(tmp_path) == ["export"]
    assert names(final) == ["config.json"]


def test_link_to_a_directory_on_another_disk(tmp_path):
    (tmp_path / "big_disk" / "export").mkdir(parents=True)
    (tmp_path / "export").symlink_to(tmp_path / "big_disk" / "export")
    with new_directory(tmp_path / "export") as partial:
        assert partial.parent == tmp_path / "big_disk"
        (partial / "new").write_text("new")
    assert (tmp_path / "export").is_symlink()
    assert names(tmp_path / "export") == ["new"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_disk_full_while_writing_anything_else(tmp_path, code):
    with (
        pytest.raises(
            CheckpointError, match=r"disk is full: more than [\d,]*5,000 bytes are needed"
        ),
        new_directory(tmp_path / "export") as partial,
    ):
        (partial / "tokenizer.json").write_bytes(bytes(5_000))
        raise OSError(code, os.strerror(code))
    assert names(tmp_path) == []


def test_other_errors_are_not_called_a_full_disk(tmp_path):
    def produce(name):
        raise OSError(errno.EIO, "Input/output error")

    with (
        pytest.raises(OSError, match="Input/output"),
        new_directory(tmp_path / "export") as partial,
    ):
        write_sharded(partial, {"w": ((1,), np.int8)}, produce)
    assert names(tmp_path) == []


# New files


def test_new_file_appears_when_complete(tmp_path, synced):
    final = tmp_path / "deeper" / "model.npz"
    with new_file(final, 5) as out:
        assert Path(out.name) == final.with_name(f".model.npz.partial-{HOST}-{os.getpid()}")
        out.write(b"whole")
        assert not final.exists()
    assert final.read_bytes() == b"whole"
    assert names(final.parent) == ["model.npz"]
    assert synced == {final.stat().st_ino, final.parent.stat().st_ino}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("overwrite", [False, True])
def test_failure_leaves_files_as_they_were(tmp_path, error, overwrite):
    final = tmp_path / "model.npz"
    if overwrite:
        final.write_text("old")
    with pytest.raises(error), new_file(final, 3, overwrite) as out:
        out.write(b"new")
        raise error
    assert names(tmp_path) == (["model.npz"] if overwrite else [])
    assert not overwrite or final.read_text() == "old"


def test_existing_file_is_replaced_only_when_asked(tmp_path):
    final = tmp_path / "model.npz"
    final.write_text("old")
    with (
        pytest.raises(CheckpointError, match=r"model.npz already exists: .* overwrite=True"),
        new_file(final, 3),
    ):
        pytest.fail("the block ran")
    with new_file(final, 3, overwrite=True) as out:
        out.write(b"new")
        assert final.read_text() == "old"
    assert final.read_text() == "new"
    assert names(tmp_path) == ["model.npz"]


def test_file_that_appears_meanwhile_is_kept(tmp_path):
    final = tmp_path / "model.npz"
    with pytest.raises(CheckpointError, match="already exists"), new_file(final, 4) as out:
        out.write(b"mine")
        final.write_text("theirs")
    assert names(tmp_path) == ["model.npz"]
    assert final.read_text() == "theirs"


@pytest.mark.parametrize("overwrite", [False, True])
def test_directory_in_the_way_of_a_file(tmp_path, overwrite):
    (tmp_path / "model.npz").mkdir()
    (tmp_path / "file").write_text("a file")
    with (
        pytest.raises(CheckpointError, match="npz is a directory"),
        new_file(tmp_path / "model.npz", 1, overwrite),
    ):
        pytest.fail("the block ran")
    with (
        pytest.raises(CheckpointError, match="cannot be written"),
        new_file(tmp_path / "file" / "model.npz", 1, overwrite),
    ):
        pytest.fail("the block ran")


def test_leftover_files_of_dead_processes_are_removed(tmp_path):
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], **CAPTURED)
    kept = f".model.npz.partial-{HOST}-{os.getppid()}"
    for name in (kept, f".model.npz.partial-{HOST}-{int(done.stdout)}"):
        (tmp_path / name).write_text("half")
    with new_file(tmp_path / "model.npz", 0):
        pass
    assert names(tmp_path) == sorted([kept, "model.npz"])


def test_link_to_a_file_on_another_disk(tmp_path):
    (tmp_path / "big_disk").mkdir()
    (tmp_path / "model.npz").symlink_to(tmp_path / "big_disk" / "model.npz")
    with new_file(tmp_path / "model.npz", 5) as out:
        assert Path(out.name).parent == tmp_path / "big_disk"
        out.write(b"whole")
    assert (tmp_path / "model.npz").is_symlink()
    assert (tmp_path / "big_disk" / "model.npz").read_bytes() == b"whole"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_disk_full_while_writing_a_file(tmp_path):
    (tmp_path / f".model.npz.partial-{HOST}-{os.getpid()}").symlink_to("/dev/full")
    with (
        pytest.raises(CheckpointError, match=r"disk is full.*need 100,000 bytes, and [\d,]+ were"),
        new_file(tmp_path / "model.npz", 100_000) as out,
    ):
        out.write(bytes(100_000))
    assert names(tmp_path) == []
