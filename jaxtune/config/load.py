"""Reads a config file, with the overrides typed at the terminal, into a `Config`.

A config file is Python with a `get_config()` that returns what differs from the defaults, as a
`ConfigDict` or a dictionary.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtune.config import python_file
from jaxtune.config.checks import CHECKS
from jaxtune.config.fields import override
from jaxtune.config.schema import SCHEMA, SECTIONS, Config


def load(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """The config that a file describes; `file.py:text` calls its `get_config(text)`.

    `overrides` are as typed at the terminal, `--config.optim.lr=3e-4`; of two for one key the last
    counts.
    """
    file, values = python_file.values_of(os.fspath(path), SECTIONS)
    settings = SCHEMA.settings(values, str(file))
    return SCHEMA.assembled([*settings, *map(override, overrides)], CHECKS)


def parse(values: Mapping[str, Any], origin: str = "config") -> Config:
    """The config of nested dictionaries, such as `resolved` gives."""
    return SCHEMA.assembled(SCHEMA.settings(python_file.plain(values), origin), CHECKS)


def resolved(config: Config) -> dict[str, Any]:
    """Every field, as nested dictionaries that JSON gives back as they are."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def difference(old: Config | Mapping[str, Any], new: Config | Mapping[str, Any]) -> list[str]:
    """What changed, a line a field: `optim.lr: 0.0001 -> 0.0003`."""
    plain = (resolved(each) if isinstance(each, Config) else each for each in (old, new))
    return SCHEMA.difference(*plain)


def describe() -> str:
    """Every field with its default, type and meaning, as text 100 columns wide."""
    return SCHEMA.describe("config")
