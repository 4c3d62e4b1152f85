"""Reads a config file and command-line overrides into a `Config`.

A config file is a Python file with a `get_config()` that returns the settings that differ from the
defaults, as a `ConfigDict` or a dictionary.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtune.config import python_file
from jaxtune.config.checks import CHECKS
from jaxtune.config.fields import ConfigError, override
from jaxtune.config.schema import SCHEMA, SECTIONS, Config
from jaxtune.display.escapes import typed


def load(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """Loads the config of a file; `file.py:text` calls its `get_config(text)`.

    `overrides` have the form of command-line flags, `--config.optim.lr=3e-4`, and take precedence
    over the file; of several for one key the last counts. Raises ConfigError, which lists every
    problem found.
    """
    file, values = python_file.values_of(os.fspath(path), SECTIONS)
    settings = SCHEMA.settings(values, str(file))
    return SCHEMA.assembled([*settings, *map(override, overrides)], CHECKS)


def parse(values: Mapping[str, Any], origin: str = "config") -> Config:
    """Returns the config of nested dictionaries, such as those that `resolved` returns.

    `origin` names their source in error messages. Raises ConfigError as `load` does.
    """
    return SCHEMA.assembled(SCHEMA.settings(python_file.plain(values), origin), CHECKS)


def config_of(given: Config | Mapping[str, Any] | str | os.PathLike[str]) -> Config:
    """Returns the config of a file's path or of nested dictionaries, or a config as it is."""
    if isinstance(given, Config):
        return given
    if isinstance(given, str | os.PathLike):
        return load(given)
    if isinstance(given, Mapping) or hasattr(given, "to_dict"):
        return parse(given)
    raise ConfigError(
        f"config is {typed(given)}; expected what load_config(path) returns, the path of "
        "a config file, or a dictionary"
    )


def resolved(config: Config) -> dict[str, Any]:
    """Returns all fields as nested dictionaries that a round trip through JSON leaves unchanged."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def difference(old: Config | Mapping[str, Any], new: Config | Mapping[str, Any]) -> list[str]:
    """Returns one line for each field that differs, such as `optim.lr: 0.0001 -> 0.0003`."""
    plain = (resolved(each) if isinstance(each, Config) else each for each in (old, new))
    return SCHEMA.difference(*plain)


def describe() -> str:
    """Returns all fields with default, type and meaning, as text 100 columns wide."""
    return SCHEMA.describe("config")
