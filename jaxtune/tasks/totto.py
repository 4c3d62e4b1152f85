"""ToTTo: a table with highlighted cells becomes a sentence that describes these cells."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtune.data.errors import RowError, column
from jaxtune.metrics.bleu import BLEU
from jaxtune.metrics.chrf import CHRF
from jaxtune.metrics.parent import Table, parent
from jaxtune.metrics.rouge import ROUGE_L
from jaxtune.tasks import texts

COLUMNS = {
    "table_page_title": "title of the page that the table is on",
    "table_section_title": "title of the section that the table is in",
    "table_section_text": "text of that section before the table; only PARENT uses it",
    "table": "rows of cells: value, is_header, column_span, row_span",
    "highlighted_cells": "[row, column] of each highlighted cell",
    "target": "the sentence; the first final_sentence of sentence_annotations by default",
    "references": "all acceptable sentences; by default every final_sentence, or the target",
}
PREFIX = "Describe the highlighted cells in one sentence.\n{table}\nSentence:"

Cell = Mapping[str, Any]


def prefix(record: Mapping[str, Any], place: str) -> str:
    """Returns the instruction with the linearised highlighted cells."""
    return PREFIX.format(table=linearised(record, place))


def suffix(record: Mapping[str, Any], place: str) -> str:
    """Returns the sentence to learn, after a space."""
    return f" {_sentence(record, place).strip()}"


def references(record: Mapping[str, Any], place: str) -> tuple[str, ...]:
    """Returns every acceptable sentence."""
    found = texts(record, "references", place) or tuple(_annotated(record))
    return found or (_sentence(record, place).strip(),)


def prepared(record: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Returns the columns that this task reads, with every acceptable sentence as `references`."""
    target = _sentence(record, place).strip()
    return {
        "table_page_title": record.get("table_page_title") or "",
        "table_section_title": record.get("table_section_title") or "",
        "table_section_text": record.get("table_section_text") or "",
        "table": column(record, "table", place),
        "highlighted_cells": column(record, "highlighted_cells", place),
        "target": target,
        "references": list(
            dict.fromkeys([target, *_annotated(record), *texts(record, "references", place)])
        ),
    }


def linearised(record: Mapping[str, Any], place: str) -> str:
    """Returns titles, then a line for each highlighted cell, with its row and column headers."""
    table, cells = column(record, "table", place), column(record, "highlighted_cells", place)
    try:
        grid = _grid(table)
        lines = [_line(grid, table[row][cell], int(row)) for row, cell in cells]
    except (AttributeError, TypeError, KeyError, IndexError, ValueError) as error:
        raise RowError(
            place,
            f"'table' and 'highlighted_cells' do not match ({type(error).__name__}: {error}); "
            "expected rows of cells, and pairs of row and column in them",
        ) from None
    if not lines:
        raise RowError(place, "no cell is highlighted, so there is nothing to describe")
    titles = [
        f"{name}: {record[key]}"
        for name, key in (("Page", "table_page_title"), ("Section", "table_section_title"))
        if record.get(key)
    ]
    return "\n".join([*titles, *lines])


def _whole(record: Mapping[str, Any]) -> Table:
    """Returns all that an answer may mention: all cells, the titles and the section's text."""
    cells = [cell for row in record["table"] for cell in row]
    return _cells(record, cells) + _titles(record, "table_section_text")


def _highlighted(record: Mapping[str, Any]) -> Table:
    """Returns what an answer should mention: the highlighted cells and the titles."""
    return _cells(record, [record["table"][row][cell] for row, cell in record["highlighted_cells"]])


def _cells(record: Mapping[str, Any], cells: Sequence[Cell]) -> Table:
    values = [("cell", _unbarred(cell.get("value", ""))) for cell in cells]
    return values + _titles(record, "table_page_title", "table_section_title")


def _titles(record: Mapping[str, Any], *names: str) -> Table:
    return [(name, _unbarred(record[name])) for name in names if record.get(name)]


def _unbarred(value: Any) -> str:
    """Returns a value as in ToTTo's evaluation, whose files use `|` to separate values."""
    return str(value).replace("|", "-")


# The metrics of ToTTo's evaluation, whose default for PARENT's lambda is `weight=None`.
METRICS = (BLEU, CHRF, ROUGE_L, parent(_whole, weight=None, told_of=_highlighted))


def _grid(table: Sequence[Sequence[Cell]]) -> list[dict[int, Cell]]:
    """Returns each row's cells by column, with cells that span several columns or rows repeated."""
    grid: list[dict[int, Cell]] = [{} for _ in table]
    for number, row in enumerate(table):
        place = 0
        for cell in row:
            while place in grid[number]:
                place += 1
            across, down = int(cell.get("column_span", 1)), int(cell.get("row_span", 1))
            for below in grid[number : number + max(down, 1)]:
                below.update(dict.fromkeys(range(place, place + max(across, 1)), cell))
            place += max(across, 1)
    return grid


def _line(grid: Sequence[Mapping[int, Cell]], cell: Cell, row: int) -> str:
    """Returns a cell with the headers of its row and columns, such as `2004, Goals: 12`."""
    places = {place for place, each in grid[row].items() if each is cell}
    # A row of header cells only heads columns; any other header cell heads the row it starts.
    heads = [each for each in grid[:row] if all(cell.get("is_header") for cell in each.values())]
    above = [each.get(place) for each in heads for place in sorted(places)]
    beside = [grid[row].get(place) for place in range(min(places))]
    headers = [
        str(each["value"]).strip() for each in (*beside, *above) if each and each.get("is_header")
    ]
    label = ", ".join(dict.fromkeys(header for header in headers if header))
    value = str(cell["value"]).strip()
    return f"{label}: {value}" if label else value


def _sentence(record: Mapping[str, Any], place: str) -> str:
    if isinstance(record.get("target"), str) and record["target"].strip():
        return record["target"]
    first = next(iter(_annotated(record)), None)
    if first is None:
        raise RowError(place, "no sentence in 'target' or 'sentence_annotations'")
    return first


def _annotated(record: Mapping[str, Any]) -> list[str]:
    """Returns the final sentences of all annotators."""
    found = record.get("sentence_annotations")
    # A mapping of columns, or a list of records as in the dataset's own files.
    if isinstance(found, Mapping):
        return _texts(found.get("final_sentence"))
    each = found if isinstance(found, list) else []
    return _texts([one.get("final_sentence") for one in each if isinstance(one, Mapping)])


def _texts(values: Any) -> list[str]:
    """Returns the non-empty texts of a list, stripped."""
    listed = values if isinstance(values, list) else []
    return [each.strip() for each in listed if isinstance(each, str) and each.strip()]
