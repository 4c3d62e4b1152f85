"""What all writers of checkpoints share: files and directories that appear under their names only
once they are whole and on the disk, arrays in blocks, and a full disk explained.
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

BLOCK_BYTES = 64 * 2**20  # how much of a transposed tensor is copied at a time
PROCESS = re.compile(r"[1-9]\d{0,8}")  # an id; longer ones os.kill would not take
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def new_directory(
    final: str | os.PathLike[str], overwrite: bool = False, mark: str = "config.json"
) -> Iterator[Path]:
    """A temporary sibling to write into, which becomes `final` only if the block succeeds.

    With `overwrite`, `final` may be an earlier checkpoint, told by the file `mark` in it; no other
    directory is ever replaced.
    """
    final = Path(final).expanduser().resolve()  # through a link, to rename within one disk
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
        shutil.rmtree(partial, ignore_errors=True)  # moved away already where all went well


@contextlib.contextmanager
def new_file(
    final: str | os.PathLike[str], needed: int, overwrite: bool = False
) -> Iterator[IO[bytes]]:
    """A file of `needed` bytes, which becomes `final` only if the block succeeds."""
    final = Path(final).expanduser().resolve()  # through a link, to rename within one disk
    _refuse_existing_file(final, overwrite)
    _remove_leftovers(final)
    partial = final.with_name(f"{_partial_stem(final)}{os.getpid()}")
    with _refusal_explained(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
    with full_disk_explained(final.parent, needed), whole_file(final, partial) as out:
        yield out
        _refuse_existing_file(final, overwrite)  # again: someone may have written it meanwhile
    _sync(final.parent)


@contextlib.contextmanager
def full_disk_explained(directory: Path, needed: int) -> Iterator[None]:
    """An error that says how much was to be written and how much was free."""
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
    """Contiguous pieces in order, so that a transposed tensor is never copied whole."""
    if array.flags.c_contiguous:
        yield array
        return
    rows = max(1, BLOCK_BYTES // array[0].nbytes)
    for start in range(0, len(array), rows):
        yield np.ascontiguousarray(array[start : start + rows])


def refuse_existing(final: Path, overwrite: bool, mark: str = "config.json") -> None:
    """Stop where writing would destroy what is there: with `overwrite`, all but a checkpoint."""
    if final.exists() and not final.is_dir():
        raise CheckpointError(f"{final} is a file, and a directory is to be written: move it away")
    found = sorted(final.iterdir()) if final.is_dir() else []
    if found and not overwrite:
        raise CheckpointError(
            f"{final} already exists and is not empty: remove it, choose another directory, or"
            " replace it with overwrite=True"
        )
    if odd := _why_no_checkpoint(found, mark):
        raise CheckpointError(
            f"{final} does not look like a checkpoint ({odd}), and overwrite=True replaces only a"
            f" directory that has {mark} and nothing but plain files: remove it yourself, or"
            " choose another directory"
        )


def publish(source: Path, final: Path, overwrite: bool, mark: str = "config.json") -> None:
    """Give a checkpoint that is whole, a directory or a file, its final name."""
    if source.is_dir():
        _move_into_place(source, final, overwrite, mark)
        return
    _refuse_existing_file(final, overwrite)
    source.replace(final)
    _sync(final.parent)


def _refuse_existing_file(final: Path, overwrite: bool) -> None:
    if final.is_dir():
        raise CheckpointError(f"{final} is a directory, and a file is to be written: name the file")
    if final.exists() and not overwrite:
        raise CheckpointError(
            f"{final} already exists: remove it, choose another name, or replace it with"
            " overwrite=True"
        )


def _why_no_checkpoint(found: list[Path], mark: str) -> str:
    """Why a directory with this content is no checkpoint; nothing if it is one, or is empty."""
    if directories := [path.name for path in found if not path.is_file()]:
        return f"it holds {some(directories)}"
    if found and mark not in [path.name for path in found]:
        return f"it has no {mark}, but {some([path.name for path in found])}"
    return ""


def _partial_stem(final: Path) -> str:
    """What precedes the process in a temporary name; a shared disk has processes of many hosts."""
    return f".{final.name}.partial-{socket.gethostname()}-"


def _remove_leftovers(final: Path) -> None:
    """Free the disk of what processes left that were killed while they wrote this."""
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
        os.kill(process, 0)  # sends nothing
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is someone else's
    return True


def _make_directory(partial: Path, final: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)  # a killed process may have had the same id
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
        f"{final}: the disk is full: more than {written:,} bytes are needed, and {free:,} are free"
        " without them. Nothing was kept. Free some space or choose a directory on another disk"
    )


def _sync_tree(directory: Path) -> None:
    """Bring files and directories to the disk, before a rename makes them the real ones."""
    for path in (*directory.rglob("*"), directory):
        if not path.is_symlink():
            _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # which some network file systems cannot sync
            raise
    finally:
        os.close(descriptor)


def _move_into_place(partial: Path, final: Path, overwrite: bool, mark: str) -> None:
    aside = final.with_name(f".{final.name}.replaced-{os.getpid()}")
    refuse_existing(final, overwrite, mark)  # again: someone may have written there meanwhile
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
