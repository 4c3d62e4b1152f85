"""A table with highlighted cells becomes a sentence that tells what these say."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtune.data.errors import RowError, column
from jaxtune.metrics.bleu import BLEU
from jaxtune.metrics.chrf import CHRF
from jaxtune.metrics.parent import Table, parent
from jaxtune.metrics.rouge import ROUGE_L
from jaxtune.tasks import texts

COLUMNS = {
    "table_page_title": "of the page that the table is on",
    "table_section_title": "of the section",
    "table_section_text": "which stands before the table; PARENT alone reads it",
    "table": "rows of cells: value, is_header, column_span, row_span",
    "highlighted_cells": "pairs of row and column",
    "target": "the sentence; or else sentence_annotations, whose first final_sentence it is",
    "references": "all sentences that would do; or else every final_sentence, or the target",
}
PREFIX = "Describe the highlighted cells in one sentence.\n{table}\nSentence:"

Cell = Mapping[str, Any]


def prefix(record: Mapping[str, Any], place: str) -> str:
    """What to do, and the part of the table that bears on it."""
    return PREFIX.format(table=linearised(record, place))


def suffix(record: Mapping[str, Any], place: str) -> str:
    """The sentence."""
    return f" {_sentence(record, place).strip()}"


def references(record: Mapping[str, Any], place: str) -> tuple[str, ...]:
    """Every sentence that would do."""
    found = texts(record, "references", place) or tuple(_annotated(record))
    return found or (_sentence(record, place).strip(),)


def prepared(record: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The columns read here, of a record as it was published, and every sentence that would do."""
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
    """Titles, then each highlighted cell behind the headers over it and beside it."""
    table, cells = column(record, "table", place), column(record, "highlighted_cells", place)
    try:
        grid = _grid(table)
        lines = [_line(grid, table[row][cell], int(row)) for row, cell in cells]
    except (AttributeError, TypeError, KeyError, IndexError, ValueError) as error:
        raise RowError(
            place,
            f"table and highlighted_cells do not fit each other ({type(error).__name__}: {error}); "
            "rows of cells and pairs of row and column were expected",
        ) from None
    if not lines:
        raise RowError(place, "no cell is highlighted, so there is nothing to tell")
    titles = [
        f"{name}: {record[key]}"
        for name, key in (("Page", "table_page_title"), ("Section", "table_section_title"))
        if record.get(key)
    ]
    return "\n".join([*titles, *lines])


def _whole(record: Mapping[str, Any]) -> Table:
    """What an answer may tell of: all cells, titles and the section's text."""
    cells = [cell for row in record["table"] for cell in row]
    return _told(record, cells) + _titles(record, "table_section_text")


def _highlighted(record: Mapping[str, Any]) -> Table:
    """What an answer ought to tell."""
    return _told(record, [record["table"][row][cell] for row, cell in record["highlighted_cells"]])


def _told(record: Mapping[str, Any], cells: Sequence[Cell]) -> Table:
    values = [("cell", _unbarred(cell.get("value", ""))) for cell in cells]
    return values + _titles(record, "table_page_title", "table_section_title")


def _titles(record: Mapping[str, Any], *names: str) -> Table:
    return [(name, _unbarred(record[name])) for name in names if record.get(name)]


def _unbarred(value: Any) -> str:
    """As ToTTo's evaluation has a value, whose files keep values apart by bars."""
    return str(value).replace("|", "-")


# As ToTTo's evaluation has them; PARENT's weight is what it takes when told none.
METRICS = (BLEU, CHRF, ROUGE_L, parent(_whole, weight=None, told_of=_highlighted))


def _grid(table: Sequence[Sequence[Cell]]) -> list[dict[int, Cell]]:
    """Every row's cells by the columns they reach over, those from rows above included."""
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
    """`2004, Goals: 12`: the headers of a cell's row and columns, and its value."""
    places = {place for place, each in grid[row].items() if each is cell}
    # Rows of headers alone head columns; another header heads the row that it begins.
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
        raise RowError(place, "has no sentence in 'target' nor in 'sentence_annotations'")
    return first


def _annotated(record: Mapping[str, Any]) -> list[str]:
    """The final sentences of all annotators."""
    found = record.get("sentence_annotations")
    # As the dataset's own files have it, or as a table of columns.
    if isinstance(found, Mapping):
        return _texts(found.get("final_sentence"))
    each = found if isinstance(found, list) else []
    return _texts([one.get("final_sentence") for one in each if isinstance(one, Mapping)])


def _texts(values: Any) -> list[str]:
    """Those of a list that say something."""
    listed = values if isinstance(values, list) else []
    return [each.strip() for each in listed if isinstance(each, str) and each.strip()]
