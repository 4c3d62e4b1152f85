"""The tensors of a checkpoint as they lie on disk, in whichever file format: where each one is, and
reading it through a memory map.
"""

import difflib
import math
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np

# What else is often found where a checkpoint is expected, by its first bytes.
IMPOSTORS = {
    b"\x80": "a Python pickle, which jaxtune does not read because loading one can run code",
    b"version https://git-lfs": "a Git LFS pointer instead of the data: run `git lfs pull`",
    b"GGUF": "a GGUF file: use the safetensors version of this checkpoint",
    b"<": "a web page, perhaps an error page that was saved instead of the file",
}


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written as asked."""


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: `start` and `stop` are byte offsets from the start of `file`."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int
    order: Literal["C", "F"] = "C"  # F: its first axis runs fastest
    deflated: bool = False  # the bytes from start to stop are compressed

    @property
    def nbytes(self) -> int:
        """How many bytes the tensor takes in memory."""
        return nbytes(self.shape, self.dtype)


class Tensors:
    """The tensors of one checkpoint, in one file or many, read through memory maps."""

    format: ClassVar[str]  # a word for the file format

    def __init__(self, tensors: dict[str, TensorInfo], metadata: dict[str, str]):
        self.tensors = tensors
        self.metadata = metadata
        self._maps: dict[Path, mmap.mmap] = {}

    def read(self, name: str) -> np.ndarray:
        """One tensor as a read-only view of the file; its pages are read when touched."""
        info = self._info(name)
        return np.ndarray(
            info.shape, info.dtype, self._map(info.file), info.start, order=info.order
        )

    def release(self, name: str) -> None:
        """Let the memory of a tensor go; views of it stay valid and read the file again."""
        info = self._info(name)
        mapped = self._maps.get(info.file)
        if mapped is None or not hasattr(mmap, "MADV_DONTNEED"):  # Windows has none
            return
        first = -(-info.start // mmap.PAGESIZE) * mmap.PAGESIZE
        last = info.stop // mmap.PAGESIZE * mmap.PAGESIZE
        if first < last:
            mapped.madvise(mmap.MADV_DONTNEED, first, last - first)

    def close(self) -> None:
        """Let go of the files; arrays that were read stay valid."""
        # Never mmap.close(): NumPy's views do not hold it back, and reading them would then crash.
        # A map closes by itself with the last array that views it.
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
    """How many bytes a tensor takes."""
    return math.prod(shape) * dtype.itemsize


def impostor(first: bytes) -> str | None:
    """What a file is, told by its first bytes, if it is one of those often taken for weights."""
    return next((kind for magic, kind in IMPOSTORS.items() if first.startswith(magic)), None)


def some(names: list[str], most: int = 8) -> str:
    """Names for an error message, cut off after the first few."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
