"""Formats Markdown: tables, code and text from elsewhere, without local folders.

Names and texts of a run may hold anything: backticks, pipes, brackets, HTML, line breaks, terminal
escapes. Here they become what they look like, and never markup.
"""

import html
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PATH = re.compile(r"(?<![\w./])(?:~|[A-Za-z]:)?(?:[/\\][\w.@+-]+)+[/\\]([\w.@+-]+)")
BUCKET = re.compile(r"\b(?!https?:)[A-Za-z][A-Za-z0-9+.-]*://(?:[\w.@+-]+/)*([\w.@+-]+)")
# What Markdown takes for markup in running text. An underscore within a word is none.
MARKUP = re.compile(r"[\\`*\[\]<>|~$&]|(?<![^\W_])_|_(?![^\W_])|^[-+=#]|^\d+[.)]")
BARE_PIPE = re.compile(r"(?<!\\)\|")
ENTITIES = {ord(each): f"&#{ord(each)};" for each in "\\`*_[]|~$"}
LONGEST = 300  # characters of a value that are shown


def file_name(spec: str) -> str:
    """Returns the last component of a local path."""
    return Path(os.path.abspath(os.path.expanduser(spec))).name


def public(text: str) -> str:
    """Replaces each path, and each URL of an object store, in a text by its last component."""
    return PATH.sub(r"\1", BUCKET.sub(r"\1", text))


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table of cells that are Markdown already."""
    lines = [heads, ["---"] * len(heads), *rows]
    cells = ([BARE_PIPE.sub(r"\\|", cell) for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def plain(text: str) -> str:
    """Returns a text as Markdown that shows it as it is, on one line."""
    return MARKUP.sub(lambda match: f"{match[0][:-1]}\\{match[0][-1]}", visible(text))


def as_code(value: Any) -> str:
    """Formats a value as inline code, with more backticks around it than it contains."""
    text = visible(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    if "\\|" in text:  # a table would end the cell there, or show one backslash more
        return f"<code>{html.escape(text, quote=False).translate(ENTITIES)}</code>"
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    room = " " if "`" in text or not text or text[0] == text[-1] == " " else ""
    return f"{fence}{room}{text}{room}{fence}"


def as_literal(text: str) -> str:
    """Returns a text as a Python string literal for code blocks."""
    quoted = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return "".join(each if each.isprintable() else _escape(each) for each in quoted)


def visible(text: str) -> str:
    """Returns the start of a text, with characters that cannot be printed as escapes."""
    cut = text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
    return "".join(each if each.isprintable() else _escape(each) for each in cut)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def figure_text(figure: Mapping[str, Any] | None) -> str:
    if figure is None or figure["value"] is None or figure["low"] is None:
        return "-"
    return f"{figure['value']:.4g} [{figure['low']:.4g}, {figure['high']:.4g}]"


def number_text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
