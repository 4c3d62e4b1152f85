"""Uploads of folders that are complete in the store, or do not count.

Stores rename no folders. So while one is uploaded, an object in it lists the names that are on
their way, and the file by which such a folder is recognised is removed first and arrives last.
"""

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jaxtune.files.fetched import UPLOADING
from jaxtune.files.store import Store, StoreError, is_inside

AT_ONCE = 8  # files that are uploaded at a time
MARKS = ("adapter_config.json", "config.json", "export.json")  # files that readers look for


def publish(store: Store, folder: Path, replaced: Iterable[str] = ()) -> None:
    """Uploads the files of a folder, in place of an earlier upload.

    Args:
      store: The folder in the store.
      folder: The local one, which holds at least one of `MARKS`. The first that it holds is the
        file by which readers recognise the folder, and arrives last.
      replaced: Names of an earlier upload, which are removed unless they are written anew.
    """
    files = files_below(folder)
    mark = next(name for name in MARKS if name in files)
    stale = {*unfinished(store), *replaced} - files.keys()
    store.write(UPLOADING, json.dumps({"files": sorted({*files, *stale})}).encode())
    store.remove([mark, *sorted(stale)])
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda name: store.upload(name, files[name]), files.keys() - {mark}))
    store.upload(mark, files[mark])
    store.remove([UPLOADING])


def files_below(folder: Path) -> dict[str, Path]:
    """Returns the files in a local folder and those below it, by their names relative to it."""
    files = (each for each in sorted(folder.rglob("*")) if each.is_file())
    return {each.relative_to(folder).as_posix(): each for each in files}


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
    if not isinstance(found, list) or not all(
        isinstance(each, str) and is_inside(each) for each in found
    ):
        raise StoreError(
            f"{store.named(UPLOADING)} is not what jaxtune writes; remove it if no upload is under "
            "way"
        )
    return [*found, UPLOADING]


def standing(store: Store) -> list[str]:
    """Returns the names in a folder besides those of an upload that was cut off."""
    left = unfinished(store)
    return [name for name in store.entries() if name not in left]
