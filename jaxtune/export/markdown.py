"""Formats Markdown tables and code, and strips local folders from paths."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PATH = re.compile(r"(?<![\w./])(?:~|[A-Za-z]:)?(?:[/\\][\w.@+-]+)+[/\\]([\w.@+-]+)")


def file_name(spec: str) -> str:
    """Returns the last component of a local path."""
    return Path(os.path.abspath(os.path.expanduser(spec))).name


def public(text: str) -> str:
    """Replaces each path in a text by its last component."""
    return PATH.sub(r"\1", text)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    cells = ([cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def as_code(value: Any) -> str:
    """Formats a value as inline code, with more backticks around it than it contains."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = text.replace("\n", "\\n")
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    room = " " if "`" in text or not text else ""
    return f"{fence}{room}{text}{room}{fence}"


def figure_text(figure: Mapping[str, Any] | None) -> str:
    if figure is None or figure["value"] is None or figure["low"] is None:
        return "-"
    return f"{figure['value']:.4g} [{figure['low']:.4g}, {figure['high']:.4g}]"


def number_text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
