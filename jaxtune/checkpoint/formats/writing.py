"""Shared parts of the checkpoint writers: atomic files and directories, and writing in blocks.

A file or directory gets its final name only once it is complete and flushed to disk, and running
out of disk space is reported with the space that is needed.
"""

import contextlib
import errno
import glob
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from jaxtune.checkpoint.formats.tensors import CheckpointError, some
from jaxtune.files import whole_file

BLOCK_BYTES = 64 * 2**20  # of a transposed tensor copied at a time
PROCESS = re.compile(r"[1-9]\d{0,8}")  # a process id that is small enough for os.kill
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def new_directory(
    final: str | os.PathLike[str], overwrite: bool = False, mark: str = "config.json"
) -> Iterator[Path]:
    """Yields a temporary sibling of `final`, which is renamed to it only if the block succeeds.

    With `overwrite`, `final` may be an earlier checkpoint, recognised by the file `mark` in it; no
    other non-empty directory is ever replaced.
    """
    final = Path(final).expanduser().resolve()  # links are followed, to rename within one disk
    refuse_existing(final, overwrite, mark)
    _remove_leftovers(final)
    partial = final.with_name(f"{_partial_stem(final)}{os.getpid()}")
    _make_directory(partial, final)
    try:
        yield partial
        _sync_tree(partial)
        _move_into_place(partial, final, overwrite, mark)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise _full_disk(partial, final) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # it is gone already if the move succeeded


@contextlib.contextmanager
def new_file(
    final: str | os.PathLike[str], needed: int, overwrite: bool = False
) -> Iterator[IO[bytes]]:
    """Yields a temporary file, which is renamed to `final` only if the block succeeds.

    `needed` is the size of the weights in bytes, for the error message on a full disk.
    """
    final = Path(final).expanduser().resolve()  # links are followed, to rename within one disk
    _refuse_existing_file(final, overwrite)
    _remove_leftovers(final)
    partial = final.with_name(f"{_partial_stem(final)}{os.getpid()}")
    with _refusal_explained(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
    with full_disk_explained(final.parent, needed), whole_file(final, partial) as out:
        yield out
        _refuse_existing_file(final, overwrite)  # again: it may have been created meanwhile
    _sync(final.parent)


@contextlib.contextmanager
def full_disk_explained(directory: Path, needed: int) -> Iterator[None]:
    """Turns disk-full errors of the block into one that states the bytes needed and free."""
    free = shutil.disk_usage(directory).free
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise CheckpointError(
            f"{directory}: the disk is full: the weights need {needed:,} bytes, and {free:,} were"
            " free before. Free some space or choose a directory on another disk"
        ) from None


def blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yields C-contiguous blocks of rows, so that a transposed tensor is never copied whole."""
    if array.flags.c_contiguous:
        yield array
        return
    rows = max(1, BLOCK_BYTES // array[0].nbytes)
    for start in range(0, len(array), rows):
        yield np.ascontiguousarray(array[start : start + rows])


def refuse_existing(final: Path, overwrite: bool, mark: str = "config.json") -> None:
    """Raises if writing a directory would destroy existing files.

    Without `overwrite`, `final` must be missing or empty. With it, `final` may also be a
    checkpoint: a directory of plain files, one of them named `mark`.
    """
    if final.exists() and not final.is_dir():
        raise CheckpointError(f"{final} is a file, not a directory to write into: move it away")
    found = sorted(final.iterdir()) if final.is_dir() else []
    if found and not overwrite:
        raise CheckpointError(
            f"{final} already exists and is not empty: remove it, choose another directory, or"
            " replace it with overwrite=True"
        )
    if problem := _why_no_checkpoint(found, mark):
        raise CheckpointError(
            f"{final} does not look like a checkpoint ({problem}), and overwrite=True replaces only"
            f" directories that contain {mark} and nothing but plain files: remove it yourself, or"
            " choose another directory"
        )


def publish(source: Path, final: Path, overwrite: bool, mark: str = "config.json") -> None:
    """Moves a complete checkpoint to its final name on the same disk.

    Args:
      source: the checkpoint, a directory or a file.
      final: its final path.
      overwrite: whether an earlier checkpoint there may be replaced.
      mark: file by which an earlier checkpoint directory is recognised.
    """
    if source.is_dir():
        _move_into_place(source, final, overwrite, mark)
        return
    _refuse_existing_file(final, overwrite)
    source.replace(final)
    _sync(final.parent)


def _refuse_existing_file(final: Path, overwrite: bool) -> None:
    if final.is_dir():
        raise CheckpointError(f"{final} is a directory: give the name of a file to write")
    if final.exists() and not overwrite:
        raise CheckpointError(
            f"{final} already exists: remove it, choose another name, or replace it with"
            " overwrite=True"
        )


def _why_no_checkpoint(found: list[Path], mark: str) -> str:
    """Returns why a directory's content is not a checkpoint, or "" if it is one or is empty."""
    if directories := [path.name for path in found if not path.is_file()]:
        return f"it contains {some(directories)}"
    if found and mark not in [path.name for path in found]:
        return f"it has no {mark}, only {some([path.name for path in found])}"
    return ""


def _partial_stem(final: Path) -> str:
    """Returns a temporary name up to the process id; hosts that share a disk get different ones."""
    return f".{final.name}.partial-{socket.gethostname()}-"


def _remove_leftovers(final: Path) -> None:
    """Removes partial files of killed processes that were writing `final` on this host."""
    for path in final.parent.glob(f"{glob.escape(_partial_stem(final))}*"):
        process = path.name.rpartition("-")[2]
        if PROCESS.fullmatch(process) and not _runs(int(process)):
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)  # signal 0 only checks that the process exists
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it runs, as another user
    return True


def _make_directory(partial: Path, final: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed process with the same id
    with _refusal_explained(final):
        partial.mkdir(parents=True)


@contextlib.contextmanager
def _refusal_explained(final: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{final} cannot be written: {error.strerror} ({error.filename})"
        ) from None


def _full_disk(partial: Path, final: Path) -> CheckpointError:
    written = sum(path.lstat().st_size for path in partial.rglob("*"))
    free = shutil.disk_usage(partial).free + written
    return CheckpointError(
        f"{final}: the disk is full: more than {written:,} bytes are needed, and only {free:,} are"
        " available. Nothing was kept. Free some space or choose a directory on another disk"
    )


def _sync_tree(directory: Path) -> None:
    """Flushes a directory and all in it to disk, before a rename makes it the final one."""
    for path in (*directory.rglob("*"), directory):
        if not path.is_symlink():
            _sync(path)


def _sync(path: Path) -> None:
    folder = path.is_dir()
    try:
        descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)  # Windows syncs the latter
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError:
        if not folder:  # Windows and some network file systems cannot sync directories
            raise


def _move_into_place(partial: Path, final: Path, overwrite: bool, mark: str) -> None:
    aside = final.with_name(f".{final.name}.replaced-{os.getpid()}")
    refuse_existing(final, overwrite, mark)  # again: it may have been created meanwhile
    replaced = final.exists()
    if replaced:
        final.rename(aside)
    try:
        partial.rename(final)
    except BaseException:
        if replaced:
            aside.rename(final)
        raise
    _sync(final.parent)
    shutil.rmtree(aside, ignore_errors=True)
