"""Stores a survey in a file, so that the next start of the run does not read all rows again."""

import contextlib
import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxtune.data.errors import Skipped
from jaxtune.data.survey import Survey
from jaxtune.files import whole_file

ARRAYS = ("rows", "lengths", "scored", "pictures", "checksums")
SKIPPED = ("too_long", "malformed")


def cached(file: Path, key: Any, make: Callable[[], Survey]) -> Survey:
    """Returns the survey in a file if it was stored under this key; else makes and stores one."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    found = _read(file, digest)
    if found is None:
        found = make()
        _write(file, digest, found)
    return found


def _read(file: Path, digest: str) -> Survey | None:
    try:
        with np.load(file, allow_pickle=False) as held:
            about = json.loads(held["about"].tobytes())
            arrays = {name: held[name] for name in ARRAYS}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    if about["digest"] != digest:
        return None
    skipped = {name: _skipped(**about[name]) for name in SKIPPED}
    return Survey(**arrays, **skipped, cut=about["cut"], cut_tokens=about["cut_tokens"])


def _write(file: Path, digest: str, found: Survey) -> None:
    about = {"digest": digest, "cut": found.cut, "cut_tokens": found.cut_tokens}
    about |= {name: vars(getattr(found, name)) for name in SKIPPED}
    arrays = {name: getattr(found, name) for name in ARRAYS}
    text = np.frombuffer(json.dumps(about).encode(), np.uint8)
    with contextlib.suppress(OSError), whole_file(file) as out:  # it only saves time
        np.savez(out, about=text, **arrays)


def _skipped(policy: str, count: int, first: list[str]) -> Skipped:
    made = Skipped(policy)
    made.count, made.first = count, first
    return made
