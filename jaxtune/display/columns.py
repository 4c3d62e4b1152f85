"""Text layout for the terminal: tables, labelled paragraphs, sizes in bytes."""

import shutil
import textwrap
from collections.abc import Mapping, Sequence

WIDTH = 100  # columns at most, and where there is no terminal
FEW = 4  # number of items shown of a long list


def grid(
    columns: Sequence[str], rows: Sequence[Mapping[str, str]], numbers: Sequence[str]
) -> list[str]:
    """Returns the lines of a table with a header; columns named in `numbers` are right-aligned.

    Columns are two spaces apart. A row without an entry for some column has a blank there.
    """
    rows = [{column: column for column in columns}, *rows]
    widths = {column: max(len(row.get(column, "")) for row in rows) for column in columns}
    sides = {column: ">" if column in numbers else "<" for column in columns}
    return [
        "  ".join(f"{row.get(name, ''):{sides[name]}{widths[name]}}" for name in columns).rstrip()
        for row in rows
    ]


def labelled(lines: Mapping[str, str]) -> list[str]:
    """Returns the lines of labelled paragraphs, with a hanging indent after each label."""
    return [part for label in lines for part in wrapped(f"{label:<12}", lines[label])]


def width() -> int:
    """Returns the columns that text may take: the terminal's, at most `WIDTH`, at least 40."""
    return max(40, min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns))


def wrapped(label: str, text: str) -> list[str]:
    """Wraps a text to the terminal's width after its label; further lines are indented below it."""
    hanging = " " * len(label)
    return textwrap.wrap(
        text, width(), initial_indent=label, subsequent_indent=hanging, break_long_words=False
    )


def few(items: Sequence[str], count: int) -> str:
    """Joins the first `FEW` items, and says how many of all `count` items are not shown."""
    more = f" and {count - FEW:,} more" if count > FEW else ""
    return ", ".join(items[:FEW]) + more


def size_text(count: int | None) -> str:
    """Formats a number of bytes in the largest binary unit that it reaches, such as `1.50 GiB`."""
    if count is None:
        return "unknown"
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = max(0, (count.bit_length() - 1) // 10) if count else 0
    return f"{count / 1024**power:,.{2 if power else 0}f} {units[power]}"
