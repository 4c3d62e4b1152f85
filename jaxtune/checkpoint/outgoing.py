"""Checkpoints and adapters that are written to an object store: made here, then uploaded whole."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax

from jaxtune.checkpoint.formats.tensors import CheckpointError, some
from jaxtune.checkpoint.origin import NPZ
from jaxtune.checkpoint.processes import in_step
from jaxtune.files.fetched import cache
from jaxtune.files.publish import publish, standing
from jaxtune.files.store import Store, is_remote, split

Place = str | os.PathLike[str]


@contextlib.contextmanager
def written(place: Place, overwrite: bool, mark: str = "config.json") -> Iterator[Path]:
    """Yields the local path at which to write a checkpoint; one for a store is then uploaded.

    With several processes, all of them must call this; the first one uploads.

    Args:
      place: Path or URL of a directory, or of an .npz file.
      overwrite: Whether an earlier checkpoint may be replaced.
      mark: File by which an earlier checkpoint is recognised, and which is uploaded last.
    """
    if not is_remote(place):
        yield Path(place).expanduser()
        return
    store, first = Store(str(place)), jax.process_index() == 0
    with in_step():
        before = refuse_existing(store, overwrite, mark) if first else []
    folder = cache() / "outgoing"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as made:
        target = Path(made) / split(store.url)[1]
        yield target
        with in_step():
            if first and target.is_file():
                store.upload("", target)
            elif first:
                publish(store, target, before)


def at(place: Place) -> Path | str:
    """Returns the place that was written, as a path with `~` expanded or as a URL."""
    return str(place).rstrip("/") if is_remote(place) else Path(place).expanduser()


def refuse_existing(store: Store, overwrite: bool, mark: str) -> list[str]:
    """Returns the names in a store that a checkpoint replaces; raises if they may not be replaced.

    What an upload that was cut off has left may always be replaced.
    """
    if store.url.endswith(NPZ):
        found = [store.url] if store.entry() else []
        known = overwrite
    else:
        found = standing(store)
        known = overwrite and mark in found and not any("/" in name for name in found)
    if not found or known:
        return found
    if not overwrite:
        raise CheckpointError(
            f"{store.url} already exists: remove it, choose another name, or replace it with "
            "overwrite=True"
        )
    raise CheckpointError(
        f"{store.url} does not look like a checkpoint (it holds {some(found)}), and overwrite=True "
        f"replaces only folders that contain {mark} and nothing but plain files: remove it "
        "yourself, or choose another name"
    )
