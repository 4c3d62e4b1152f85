"""The reference of all config fields, for the `config` command and for docs/configs.md.

`python -m jaxtune.config.reference` prints the page.
"""

import dataclasses
import difflib
from collections.abc import Iterator

from jaxtune.config.fields import ConfigError
from jaxtune.config.load import describe
from jaxtune.config.schema import FIELDS, SECTIONS, Config
from jaxtune.config.values import (
    MOST_CHARACTERS,
    MOST_ENTRIES,
    Name,
    Pattern,
    Place,
    expected,
)
from jaxtune.display.escapes import MOST, shown

PAGE = f"""\
# Config fields

A config file is a Python file with a `get_config()` that returns the settings that differ from the
defaults below, as a `ConfigDict` or a dictionary. Every field can be overridden on the command
line, for example `--config.optim.lr=3e-4`. `python launch.py config` prints this list, `python
launch.py config optim` prints one section of it, and `python launch.py config --config FILE` prints
the complete config of a file.

A value outside the range of its field is refused before any work is done. The ranges hold every
value that makes sense, and are far wider than the usual values that follow them. Texts and lists
have a largest length too:

- name: one line of {MOST_CHARACTERS[Name]:,} characters, without control characters
- path: {MOST_CHARACTERS[Place]:,} characters
- pattern: {MOST_CHARACTERS[Pattern]:,} characters
- text: {MOST_CHARACTERS[str]:,} characters
- list: {MOST_ENTRIES:,} entries

A relative path in a config starts at the current directory, as on the command line. A config that
belongs to files beside it, as the bundled demos do, starts their paths with
`Path(__file__).parent`, and so works from every directory.

This page is generated from the schema by `python -m jaxtune.config.reference > docs/configs.md`.
"""


def text(name: str = "") -> str:
    """Returns the reference of all fields, of one section or of one field, as plain text.

    Raises:
      ConfigError: If no section and no field has this name.
    """
    sections = {part.partition(":")[0]: part for part in describe().split("\n\n")}
    if not name:
        return "\n\n".join(sections.values())
    if name in sections:
        return sections[name]
    if name in FIELDS:
        section, lines = sections[name.rpartition(".")[0] or "config"], []
        for line in section.splitlines()[1:]:
            begins = line.startswith("  ") and not line.startswith("    ")
            if begins and lines:
                break
            if lines or (begins and line.split()[0] == name):
                lines.append(line)
        return "\n".join(lines)
    close = difflib.get_close_matches(name[:MOST], [*sections, *FIELDS], 1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise ConfigError(
        f"{shown(name)} is not a section or field of a config{hint}; the sections are "
        f"{', '.join(sections)}"
    )


def page() -> str:
    """Returns the text of docs/configs.md: a table of fields for each section."""
    return "\n".join([PAGE, *_sections()])


def _sections() -> Iterator[str]:
    for section, kind in {"": Config, **SECTIONS}.items():
        yield f"## `{section}`\n" if section else "## Top level\n"
        yield kind.__doc__.partition("\n")[0] + "\n"
        yield "| field | default | type | meaning |\n| --- | --- | --- | --- |"
        for key, field in FIELDS.items():
            if key.rpartition(".")[0] == section:
                yield _row(key, field)
        yield ""


def _row(key: str, field: dataclasses.Field) -> str:
    """Returns a table row, with bars inside cells escaped as GitHub's Markdown requires."""
    needed = not field.default and "needed" in field.metadata
    default = "required" if needed else f"`{field.default!r}`"
    meaning = field.metadata["meaning"]
    if "when" in field.metadata:
        name, values = field.metadata["when"]
        meaning += f" (only with `{name}` {' or '.join(map(str, values))})"
    cells = [f"`{key}`", default, expected(field), meaning]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    print(page(), end="")
