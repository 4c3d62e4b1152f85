"""Locations of a checkpoint's tensors on disk in any file format, and memory-mapped reading.

Readers of one format (`safetensors.py`, `npz.py`) subclass `Tensors`.
"""

import difflib
import math
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np

from jaxtune.display.errors import UserError

# First bytes of files that are often mistaken for weights, and what to say about each.
IMPOSTORS = {
    b"\x80": "a Python pickle, which jaxtune does not read because loading one can run code",
    b"version https://git-lfs": "a Git LFS pointer instead of the data: run `git lfs pull`",
    b"GGUF": "a GGUF file: use the safetensors version of this checkpoint",
    b"<": "a web page, perhaps an error page that was saved instead of the file",
}


MOST_AXES = 32
LONGEST_NAME = 500  # characters of a tensor's name
LARGEST = 2**48  # elements of a tensor


class CheckpointError(UserError):
    """A checkpoint cannot be read or written as requested."""


@dataclass(frozen=True)
class TensorInfo:
    """Location of one tensor: `start` and `stop` are byte offsets from the start of `file`."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int
    order: Literal["C", "F"] = "C"  # F (Fortran order): the first axis varies fastest
    deflated: bool = False  # whether the bytes from start to stop are compressed

    @property
    def nbytes(self) -> int:
        """Size of the uncompressed tensor in bytes."""
        return nbytes(self.shape, self.dtype)


class Tensors:
    """Tensors of one checkpoint, in one or more files, read through memory maps."""

    format: ClassVar[str]  # name of the file format, such as "safetensors"

    def __init__(self, tensors: dict[str, TensorInfo], metadata: dict[str, str]):
        self.tensors = tensors
        self.metadata = metadata
        self._maps: dict[Path, mmap.mmap] = {}

    def read(self, name: str) -> np.ndarray:
        """Returns a tensor as a read-only view of the file; its pages are read on first access."""
        info = self._info(name)
        return np.ndarray(
            info.shape, info.dtype, self._map(info.file), info.start, order=info.order
        )

    def elements(self, name: str, index: tuple[np.ndarray, ...]) -> np.ndarray:
        """Returns single elements of a tensor; reads only their bytes, and no pages around them."""
        info = self._info(name)
        size = info.dtype.itemsize
        places = np.ravel_multi_index(index, info.shape, order=info.order)
        found = bytearray()
        with info.file.open("rb", buffering=0) as file:
            for place in places.tolist():
                file.seek(info.start + size * place)
                found += file.read(size)
        return np.frombuffer(found, info.dtype)

    def release(self, name: str) -> None:
        """Drops a tensor's pages from memory; existing views stay valid and read the file again."""
        info = self._info(name)
        mapped = self._maps.get(info.file)
        if mapped is None or not hasattr(mmap, "MADV_DONTNEED"):  # Windows has no madvise
            return
        first = -(-info.start // mmap.PAGESIZE) * mmap.PAGESIZE
        last = info.stop // mmap.PAGESIZE * mmap.PAGESIZE
        if first < last:
            mapped.madvise(mmap.MADV_DONTNEED, first, last - first)

    def close(self) -> None:
        """Drops the memory maps; arrays that were already read stay valid."""
        # Never call mmap.close(): it succeeds even while NumPy views exist, and reading those would
        # then crash. A map is closed when the last array that views it is freed.
        self._maps = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _info(self, name: str) -> TensorInfo:
        if name in self.tensors:
            return self.tensors[name]
        close = difflib.get_close_matches(name, self.tensors, n=1)
        hint = f"; the nearest name is {close[0]}" if close else ""
        raise CheckpointError(f"the checkpoint has no tensor {name}{hint}")

    def _map(self, file: Path) -> mmap.mmap:
        if file not in self._maps:
            with file.open("rb") as opened:
                self._maps[file] = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[file]


def nbytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Returns the size of a tensor in bytes."""
    return math.prod(shape) * dtype.itemsize


def check_name(path: Path, name: str) -> None:
    """Raises if a tensor has a name that cannot be shown, or an absurdly long one."""
    if len(name) > LONGEST_NAME or not name.isprintable():
        raise CheckpointError(
            f"{path}: expected printable tensor names of at most {LONGEST_NAME} characters, found"
            f" {name[:60]!a}: the header is damaged"
        )


def check_shape(where: str, shape: tuple[int, ...]) -> None:
    """Raises if a header gives a shape that no tensor of a checkpoint has."""
    negative = any(size < 0 for size in shape)
    if len(shape) > MOST_AXES or negative or math.prod(max(size, 1) for size in shape) > LARGEST:
        raise CheckpointError(
            f"{where} has the invalid shape {shown(list(shape))}: expected at most {MOST_AXES} axes"
            f" and {LARGEST:,} elements"
        )


def shown(value: Any, most: int = 100) -> str:
    """Returns a value found in a file for an error message, cut to `most` characters."""
    text = value if isinstance(value, str) else repr(value)
    text = ascii(text)[1:-1] if not text.isprintable() else text
    return text if len(text) <= most else f"{text[:most]}…"


def impostor(first: bytes) -> str | None:
    """Returns what a file is, judged by its first bytes, if it is often mistaken for weights."""
    return next((kind for magic, kind in IMPOSTORS.items() if first.startswith(magic)), None)


def some(names: list[str], most: int = 8) -> str:
    """Joins names for an error message, at most `most` of them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(shown, names[:most])) + more
