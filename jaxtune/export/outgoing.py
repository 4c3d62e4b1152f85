"""Exports to an object store: written and verified here, beside a copy of what they replace."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from jaxtune.checkpoint.origin import NPZ
from jaxtune.checkpoint.report import REPORT
from jaxtune.display import escapes
from jaxtune.display.errors import UserError
from jaxtune.files.fetched import cache, disk_explained, download
from jaxtune.files.publish import files_below, publish, standing
from jaxtune.files.store import Store, is_remote, split
from jaxtune.workdir import agreement


@contextlib.contextmanager
def exported_to(place: Path | str | None, overwrite: bool) -> Iterator[Path | None]:
    """Yields the local path of an export to write; what the block writes beside it is uploaded.

    An earlier export in a store is copied to the local path first, so that its files are recognised
    and kept like those of a local one. All processes must call this; the first one copies and
    uploads.

    Args:
      place: Path or URL of the export; None stands for the export's default.
      overwrite: Whether an earlier export may be replaced.
    """
    if not is_remote(place):
        yield place and Path(place)
        return
    url, name = split(str(place))
    store, before = Store(url), {}

    def begun() -> str:
        if not overwrite and _names(store, name):
            raise UserError(
                f"{store.named(name)} already exists: --overwrite replaces it, --to chooses "
                "another path"
            )
        folder = cache() / "outgoing"
        folder.mkdir(parents=True, exist_ok=True)
        made = tempfile.mkdtemp(dir=folder)
        before.update(_copied(store, name, Path(made)))
        return made

    made = Path(agreement.of_first(begun))
    escapes.ALIASES[str(made)] = store.url
    try:
        yield made / name
        if agreement.first():
            _upload(store, made, before)
    finally:
        if agreement.first():
            shutil.rmtree(made, ignore_errors=True)


def _names(store: Store, name: str) -> list[str]:
    """Returns the names of an export's objects, and of the files beside an .npz file."""
    if not name.endswith(NPZ):
        return [f"{name}/{each}" for each in standing(Store(store.named(name)))]
    stem = name.removesuffix(NPZ)
    beside = (name, f"{stem}.{REPORT}", f"{stem}.md", f"{stem}.svg")
    return [each for each in beside if store.entry(each)]


def _copied(store: Store, name: str, made: Path) -> dict[str, tuple]:
    """Downloads an earlier export; returns what identifies its local files."""
    for each in _names(store, name):
        entry = store.entry(each)
        if entry is not None:
            with disk_explained(made, entry.size):
                (made / each).parent.mkdir(parents=True, exist_ok=True)
                download(store, each, made / each, entry)
    return _facts(made)


def _facts(made: Path) -> dict[str, tuple]:
    stats = {name: file.stat() for name, file in files_below(made).items()}
    return {name: (each.st_ino, each.st_size, each.st_mtime_ns) for name, each in stats.items()}


def _upload(store: Store, made: Path, before: dict[str, tuple]) -> None:
    """Uploads the exports that are new or have changed, each complete or not at all."""
    now = _facts(made)
    if now == before:
        return
    for folder in sorted(each for each in made.iterdir() if each.is_dir()):
        start = f"{folder.name}/"
        replaced = [name.removeprefix(start) for name in before if name.startswith(start)]
        publish(Store(store.named(folder.name)), folder, replaced)
    # The report of an .npz file tells that it is ours, so it goes first.
    for name in sorted((name for name in now if "/" not in name), key=lambda x: x.endswith(NPZ)):
        store.upload(name, made / name)
