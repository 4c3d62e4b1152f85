"""Text for the terminal: columns, labelled paragraphs, sizes in bytes."""

import textwrap
from collections.abc import Mapping, Sequence

WIDTH = 100  # columns
FEW = 4  # items of a long list that a line shows


def grid(
    columns: Sequence[str], rows: Sequence[Mapping[str, str]], numbers: Sequence[str]
) -> list[str]:
    """Rows under their columns, two spaces apart; those named in `numbers` stand to the right."""
    rows = [{column: column for column in columns}, *rows]
    widths = {column: max(len(row.get(column, "")) for row in rows) for column in columns}
    sides = {column: ">" if column in numbers else "<" for column in columns}
    return [
        "  ".join(f"{row.get(name, ''):{sides[name]}{widths[name]}}" for name in columns).rstrip()
        for row in rows
    ]


def labelled(lines: Mapping[str, str]) -> list[str]:
    """Texts by label, each a paragraph that hangs beside its label."""
    return [part for label in lines for part in wrapped(f"{label:<12}", lines[label])]


def wrapped(label: str, text: str) -> list[str]:
    """A text whose further lines are indented as far as the label reaches."""
    hanging = " " * len(label)
    return textwrap.wrap(
        text, WIDTH, initial_indent=label, subsequent_indent=hanging, break_long_words=False
    )


def few(items: Sequence[str], count: int) -> str:
    """The first few items of so many."""
    more = f" and {count - FEW:,} more" if count > FEW else ""
    return ", ".join(items[:FEW]) + more


def size_text(count: int) -> str:
    """Bytes in the unit that leaves one to three digits before the point."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = max(0, (count.bit_length() - 1) // 10) if count else 0
    return f"{count / 1024**power:,.{2 if power else 0}f} {units[power]}"
