"""Digests of what a checkpoint's files contain, by which a run notices that its base was replaced.

Reading all bytes of a large checkpoint takes minutes, so weight files are sampled: some bytes of
every tensor, and of every layer of a stacked one.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from jaxtune.checkpoint.formats.tensors import TensorInfo
from jaxtune.checkpoint.load import read_config
from jaxtune.checkpoint.save import stored_at

BLOCK = 64  # bytes that are read at each place
FEWEST, MOST = 4, 256  # places in a tensor; a stacked one has one in each layer

# Size in bytes, digest and time of modification in nanoseconds. The time tells nothing of what a
# file contains, but that it was written again.
Content = list[int | str]


def of_checkpoint(place: Path) -> dict[str, Content]:
    """Returns the content of a base's config.json and weight files, by file name.

    `place` is the directory of the checkpoint, or its .npz file.
    """
    stored = stored_at(place, read_config(place)[0])
    files = defaultdict(list)
    for info in stored.tensors.values():
        files[info.file].append(info)
    found = of_files([place / "config.json"] if place.is_dir() else [])
    return found | {file.name: _sampled(file, files[file]) for file in sorted(files)}


def of_files(files: Iterable[Path]) -> dict[str, Content]:
    """Returns the content of files that are small enough to read whole, by file name."""
    found = {}
    for file in files:
        with file.open("rb") as opened:
            found[file.name] = _content(file, hashlib.file_digest(opened, "sha256").hexdigest())
    return found


def _sampled(file: Path, tensors: list[TensorInfo]) -> Content:
    """Returns the content of a weight file: its tensors' names, types, shapes and sampled bytes."""
    digest = hashlib.sha256()
    with file.open("rb", buffering=0) as opened:
        for info in sorted(tensors, key=lambda each: each.start):
            about = (info.name, str(info.dtype), info.shape, info.start, info.stop, info.order)
            digest.update(repr(about).encode())
            for start in _places(info):
                opened.seek(start)
                digest.update(opened.read(min(BLOCK, info.stop - start)))
    return _content(file, digest.hexdigest())


def _places(info: TensorInfo) -> Iterator[int]:
    """Yields byte offsets of evenly spaced blocks of a tensor, the last of which ends with it."""
    layers = info.shape[0] if len(info.shape) > 2 else 0
    last = max(info.start, info.stop - BLOCK)
    yield from np.linspace(info.start, last, min(max(FEWEST, layers), MOST)).astype(int).tolist()


def _content(file: Path, digest: str) -> Content:
    found = os.stat(file)
    return [found.st_size, digest, found.st_mtime_ns]
