"""The list of complete checkpoints in a store, with a digest of every file.

A checkpoint counts once the list names it, which is after its last file has arrived. The list is
read by its name: that of the store's objects may lag behind.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jaxtune.display.errors import UserError
from jaxtune.files import misfit
from jaxtune.files.store import Store, digest, is_inside

NAME = "checkpoints.json"
FOLDER = "checkpoints"
SHAPE = {"steps": {...: {...: [object]}}, "gone": [str]}
BLOCK = 2**20  # bytes that are read at a time
MARK = "_CHECKPOINT_METADATA"  # file that Orbax writes last into a checkpoint

Files = Mapping[str, list]  # size and SHA-256 by name; "" where the latter is not known


@dataclass
class Index:
    """The complete checkpoints of a run, and the steps whose objects do not count."""

    steps: dict[str, Files] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)  # being written, or to be removed

    @classmethod
    def of(cls, store: Store) -> "Index":
        """Reads the list; without one, all checkpoints of a workdir that was copied there count."""
        try:
            content = store.read(NAME)
        except FileNotFoundError:
            return cls(_copied(store))
        try:
            found = json.loads(content)
            problem = misfit(found, SHAPE)
        except ValueError as error:
            problem = str(error)
        if problem or not _sound(found["steps"], found["gone"]):
            raise UserError(
                f"{store.named(NAME)} is not what jaxtune wrote ({problem or 'its files'}): "
                "restore it, or remove it to use all checkpoints that are there"
            )
        return cls(found["steps"], found["gone"])

    def write(self, store: Store) -> None:
        """Writes the list, in place of the former one."""
        about = {"steps": self.steps, "gone": self.gone}
        store.write(NAME, json.dumps(about, indent=1, sort_keys=True).encode())

    def digest(self, step: str) -> str:
        """Returns a digest of the files of a checkpoint."""
        return digest_of(self.steps[step])

    def clean(self, store: Store) -> None:
        """Removes the objects of the steps that do not count."""
        for step in list(self.gone):
            if step not in self.steps:
                store.remove(store.entries(f"{FOLDER}/{step}"))
        if self.gone:
            self.gone = []
            self.write(store)


def digest_of(files: Files) -> str:
    """Returns a digest of a checkpoint's files."""
    return digest(sorted((name, *about) for name, about in files.items()))


def fetch(store: Store, step: str, name: str, about: list, file: Path) -> str:
    """Downloads a file of a checkpoint; returns what is wrong with it, or ""."""
    size, expected = about
    file.parent.mkdir(parents=True, exist_ok=True)
    found = hashlib.sha256()
    try:
        with file.open("wb") as out:
            for start in range(0, size, 16 * BLOCK):
                part = store.read(f"{FOLDER}/{step}/{name}", start, min(start + 16 * BLOCK, size))
                found.update(part)
                out.write(part)
    except FileNotFoundError:
        return f"{name} is missing"
    if file.stat().st_size != size or (expected and found.hexdigest() != expected):
        return f"{name} is not what was uploaded"
    return ""


def hashed(file: Path) -> list:
    """Returns size and SHA-256 of a local file."""
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
        return [opened.tell(), found]


def _copied(store: Store) -> dict[str, Files]:
    found: dict[str, dict[str, list]] = {}
    for name, entry in store.entries(FOLDER).items():
        _, step, *rest = name.split("/")
        if step.isdecimal() and rest:
            found.setdefault(step, {})["/".join(rest)] = [entry.size, ""]
    return {step: files for step, files in found.items() if MARK in files}


def _sound(steps: Mapping[str, Files], gone: list[str]) -> bool:
    return all(map(str.isdecimal, gone)) and all(
        step.isdecimal() and [type(each) for each in about] == [int, str] and is_inside(name)
        for step, files in steps.items()
        for name, about in files.items()
    )
