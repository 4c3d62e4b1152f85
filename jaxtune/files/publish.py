"""Uploads of folders that are complete in the store, or do not count.

Stores rename no folders. So while one is uploaded, an object in it lists the names that are on
their way, and the file by which such a folder is recognised is removed first and arrives last.
"""

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jaxtune.files.fetched import UPLOADING
from jaxtune.files.store import Store, StoreError

AT_ONCE = 8  # files that are uploaded at a time


def publish(
    store: Store, files: Mapping[str, Path], mark: str, replaced: Iterable[str] = ()
) -> None:
    """Uploads the files of a folder, in place of an earlier upload.

    Args:
      store: The folder.
      files: Local files by their names in the folder, `mark` among them.
      mark: Name of the file by which the folder is recognised, which arrives last.
      replaced: Names of an earlier upload, which are removed unless they are written anew.
    """
    stale = {*unfinished(store), *replaced} - files.keys()
    store.write(UPLOADING, json.dumps({"files": sorted({*files, *stale})}).encode())
    store.remove([mark, *sorted(stale)])
    upload(store, {name: file for name, file in files.items() if name != mark})
    store.upload(mark, files[mark])
    store.remove([UPLOADING])


def upload(store: Store, files: Mapping[str, Path]) -> None:
    """Uploads files side by side, in no order."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in pool.map(lambda name: store.upload(name, files[name]), files):
            pass


def unfinished(store: Store) -> list[str]:
    """Returns the names in a folder that an upload which was cut off may have written."""
    try:
        content = store.read(UPLOADING)
    except FileNotFoundError:
        return []
    try:
        found = json.loads(content)["files"]
    except (ValueError, KeyError, TypeError):
        found = None
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise StoreError(
            f"{store.named(UPLOADING)} is not what jaxtune writes; remove it if no upload is under "
            "way"
        )
    return [*found, UPLOADING]


def standing(store: Store) -> list[str]:
    """Returns the names in a folder besides those of an upload that was cut off."""
    left = unfinished(store)
    return [name for name in store.entries() if name not in left]
