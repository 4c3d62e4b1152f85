"""Tables as HTML and as text, and collapsible groups, for notebooks and pages."""

import html
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from jaxtune.display.columns import grid
from jaxtune.display.escapes import one_line, visible

# Texts have the colours of the page, so that they are legible on white and on black.
STYLE = """
.jaxtune { overflow-x: auto; line-height: 1.5 }
.jaxtune table { border-collapse: collapse; margin: .25rem 0 }
.jaxtune td, .jaxtune th { padding: .1rem 1rem .1rem 0; text-align: left; white-space: pre-wrap }
.jaxtune details { margin: .25rem 0 .25rem .75rem }
.jaxtune summary { cursor: pointer; margin-left: -.75rem; font-weight: 600 }
.jaxtune section { border-left: 3px solid rgba(128, 128, 128, .5); margin: .5rem 0 }
.jaxtune section > * { margin-left: .5rem } .jaxtune svg { max-width: 100%; height: auto }
"""


@dataclass(frozen=True)
class Table:
    """Rows of texts by column; a row without an entry for some column has a blank there.

    Attributes:
      columns: Names of the columns, in order.
      rows: The rows; texts are escaped, and their control characters made visible.
      numbers: Names of the columns that are aligned to the right.
      strong: Indices of the rows that stand out as bold in HTML.
    """

    columns: Sequence[str]
    rows: Sequence[Mapping[str, str]]
    numbers: Sequence[str] = ()
    strong: Collection[int] = ()

    def html(self) -> str:
        """Returns the table as HTML without styles of its own but for alignment and weight."""
        heads = "".join(f"<th{self._side(name)}>{escaped(name)}</th>" for name in self.columns)
        rows = "".join(self._row(number, row) for number, row in enumerate(self.rows))
        return f"<table>\n<tr>{heads}</tr>\n{rows}</table>\n"

    def lines(self) -> list[str]:
        """Returns the table as lines of text, a row each."""
        rows = [{name: one_line(text) for name, text in row.items()} for row in self.rows]
        return grid(self.columns, rows, self.numbers)

    def _row(self, number: int, row: Mapping[str, str]) -> str:
        weight = ' style="font-weight:600"' if number in self.strong else ""
        cells = (f"<td{self._side(name)}>{escaped(row.get(name, ''))}" for name in self.columns)
        return f"<tr{weight}>{'</td>'.join(cells)}</td></tr>\n"

    def _side(self, name: str) -> str:
        return ' style="text-align:right"' if name in self.numbers else ""


def group(title: str, content: str, *, opened: bool = True) -> str:
    """Returns HTML of a collapsible group; its content is HTML, its title plain text."""
    state = " open" if opened else ""
    return f"<details{state}>\n<summary>{escaped(title)}</summary>\n{content}</details>\n"


def escaped(text: str) -> str:
    """Returns a text as HTML, with its control characters visible."""
    return html.escape(visible(text))


def fragment(content: str, style: str = "") -> str:
    """Returns HTML for a part of a page, with its styles, which apply to nothing else there."""
    return f'<div class="jaxtune">\n<style>{STYLE}{style}</style>\n{content}</div>\n'
