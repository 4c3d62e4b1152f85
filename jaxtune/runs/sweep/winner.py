"""Config files of trials, and of the best one."""

import pprint
from pathlib import Path

from jaxtune.config.schema import Config
from jaxtune.files import write_text
from jaxtune.runs.sweep.variants import settings

BEST = "best.py"  # in the workdir of a sweep


def write_config(file: Path, config: Config, about: str) -> None:
    """Writes a config as a Python file that `--config` takes.

    Args:
      file: The file.
      config: The config, of which the fields that differ from their defaults are written.
      about: First line of the file's docstring.
    """
    values = pprint.pformat(settings(config), width=92, sort_dicts=False)
    indented = values.replace("\n", "\n" + " " * 11)
    line = about.replace("\\", "/").replace('"', "'")
    write_text(file, f'"""{line}"""\n\n\ndef get_config():\n    return {indented}\n')
