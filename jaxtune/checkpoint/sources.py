"""Resolves the sources of checkpoints and tokenizers to local paths.

A source is a local path, which is used in place; the URL of an object or folder of a store, or a
Hub repository. Of the latter, a local copy is made.
"""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

from jaxtune.checkpoint import hub
from jaxtune.checkpoint.formats.safetensors import CheckpointError, Safetensors
from jaxtune.checkpoint.hub import TOKENIZER_FILES, UNWANTED, WANTED
from jaxtune.checkpoint.report import REPORT
from jaxtune.files.fetched import local
from jaxtune.files.store import Store, is_remote

WEIGHTS = "*.safetensors"
HEADER = 2**20  # bytes of a weight file that are requested first; most headers are shorter
STANDARD = ("tokenizer.json", "tokenizer.model")  # tokenizer files with settings beside them
Source = str | os.PathLike[str]


def locate(source: Source) -> Path:
    """Returns the local directory or file of a checkpoint.

    `source` is a path, a URL such as `gs://bucket/folder`, `owner/name` or `owner/name@revision`.
    What is not on this machine is downloaded into the cache of jaxtune or of huggingface_hub,
    unless it is there already.
    """
    if is_remote(source):
        return _copied(source)
    return hub.existing(source) or hub.download(*hub.repository(source))


def locate_headers(
    source: Source, weights: bool = False
) -> tuple[Path, Callable[[Path], Safetensors]]:
    """Returns a checkpoint's directory, and a function that opens its tensor headers from there.

    Weights that are not on this machine are not downloaded, only the small files beside them. The
    function then requests just their headers, and the tensors cannot be read. With `weights`,
    those of an object store are downloaded.
    """
    if is_remote(source):
        if weights or str(source).endswith(".npz"):
            return _copied(source), Safetensors.open
        return _copied(source, without=[WEIGHTS]), partial(_remote_headers, str(source))
    if path := hub.existing(source):
        return path, Safetensors.open
    repo, revision = hub.repository(source)
    directory = hub.download(repo, revision, without=[WEIGHTS])
    return directory, partial(hub.headers, repo, revision)


def locate_tokenizer(source: Source) -> Path:
    """Returns the local directory or file of a tokenizer; downloads neither weights nor index."""
    if is_remote(source):
        return _copied(source, without=[f"{WEIGHTS}*"])
    return hub.existing(source) or hub.download(*hub.repository(source), without=[f"{WEIGHTS}*"])


def _copied(source: Source, without: Sequence[str] = ()) -> Path:
    """Returns the local copy of a remote checkpoint, adapter or tokenizer."""
    url = str(source).rstrip("/")
    name = url.rpartition("/")[2]
    settled = name.endswith(".npz") or name in STANDARD
    beside = [*TOKENIZER_FILES, "*config.json"] if settled else []
    try:
        return local(url, [*WANTED, REPORT], [*UNWANTED, *without], beside)
    except FileNotFoundError as error:
        raise CheckpointError(f"{url}: {error.strerror}") from None


def _remote_headers(url: str, directory: Path) -> Safetensors:
    """Returns a remote checkpoint's tensors, by requests for the headers of its weight files.

    They are opened as files that consist of a header and nothing else, with the sizes of the
    originals, and then said to be where the weights would be.
    """
    store = Store(url)
    with tempfile.TemporaryDirectory() as made:
        for file in directory.glob("*.safetensors.index.json"):
            (Path(made) / file.name).write_bytes(file.read_bytes())
        for name, entry in store.entries().items():
            if fnmatch(name, WEIGHTS) and not any(fnmatch(name, each) for each in UNWANTED):
                _write_header(store, name, entry.size, Path(made) / name)
        with Safetensors.open(made) as found:
            return Safetensors(_moved(found.tensors, directory), found.metadata)


def _write_header(store: Store, name: str, size: int, file: Path) -> None:
    first = store.read(name, 0, min(HEADER, size))
    length = min(8 + int.from_bytes(first[:8], "little"), size)
    if length > len(first):
        first += store.read(name, len(first), length)
    with file.open("wb") as out:
        out.write(first[:length])
        out.truncate(size)


def _moved(tensors: Mapping, directory: Path) -> dict:
    return {name: replace(info, file=directory / info.file.name) for name, info in tensors.items()}
