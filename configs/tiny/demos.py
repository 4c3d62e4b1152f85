"""Write the rows that the demos learn from: palette.csv, totto.jsonl and price.jsonl.

    python configs/tiny/demos.py --out configs/tiny

They are about the same world as the base's corpus, in words and forms that it has not seen.
"""

import argparse
import csv
import json
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from string import Formatter
from typing import Any

import records
import words
from words import FAMILY, MOODS, SCENES, code, listed

Row = Mapping[str, Any]
ROWS = {"palette.csv": 900, "totto.jsonl": 580, "price.jsonl": 850}
DISTINCT = {"palette": "description", "totto": "target", "price": "prompt"}
QUESTION = "How much does this cost to the nearest dollar?\n\n{title}\n{about}\n\nPrice is $"
ABOUT = str.splitlines("""A {grade} {kind} with {extra}.
This {grade} {kind} comes with {extra}.
{Grade} quality, with {extra}.
It has {extra}; a {grade} choice.""")
TELLS = {  # one way to tell the same columns, so that a sentence follows from what is highlighted
    "players": """During the {Season} season, {page} scored {Goals} goals with {Club}.
{page} was in {Matches} matches in {Season} and scored {Goals} goals.
{page} was with {Club} in the {League}.
In {Season}, {page} was with {Club} and made {Matches} appearances.""",
    "athletes": """{page} was {Rank} in the {Event} in {Year}.
At {Host} in {Year}, {page} came in {Rank}.
{page} went to {Host} for the {Event}.""",
    "actors": """{page} was cast as the {Role} in {Title} ({Year}).
In {Year}, {page} starred in {Title}.
{Title} with {page} was made by {Director}.""",
    "elections": """{Candidate} ran for the {Party} Party and received {Votes} votes.
In {year}, {Candidate} won {Share} of the vote in {place}.
In {place}, the {Party} Party had {Votes} votes ({Share}).""",
    "districts": """{Town} is home to {Population} people.
{Town} has {Population} people on {Area} square kilometres.
{Mayor} is the mayor of {Town} in {page}.""",
}


def main() -> None:
    """Read the arguments, and write the three files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="the folder")
    parser.add_argument("--seed", type=int, default=0, help="of the rows")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    chosen = parser.parse_args()
    there = [str(chosen.out / name) for name in ROWS if (chosen.out / name).exists()]
    if there and not chosen.overwrite:
        parser.error(f"{', '.join(there)} exist; give --overwrite, or another --out")
    write(chosen.out, chosen.seed)


def write(folder: Path, seed: int = 0) -> None:
    """All rows, as files in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_csv(folder / "palette.csv", made(palette, ROWS["palette.csv"], seed))
    for task in (totto, price):
        name = f"{task.__name__}.jsonl"
        lines = (json.dumps(row, separators=(",", ":")) for row in made(task, ROWS[name], seed))
        (folder / name).write_text("".join(f"{line}\n" for line in lines))


def made(task: Callable[[random.Random], Row], count: int, seed: int) -> list[Row]:
    """So many rows of a task, no two of them alike."""
    rng = random.Random(f"{task.__name__} {seed}")
    rows: dict[str, Row] = {}
    while len(rows) < count:
        row = task(rng)
        rows.setdefault(row[DISTINCT[task.__name__]], row)
    return list(rows.values())


def palette(rng: random.Random) -> Row:
    """A theme, and its colours as people keep them: of either case, in either notation."""
    description, names = rng.choices(list(THEMES), THEMES.values())[0](rng)
    colours = [words.near(rng, code(name), 4) for name in names]
    if rng.random() < 0.3:
        colours = [colour.upper() for colour in colours]
    written = json.dumps(colours) if rng.random() < 0.5 else repr(colours)
    return {"description": description, "colors": written}


def _named(rng: random.Random) -> tuple[str, list[str]]:
    count = rng.choices([3, 4, 5], [1, 6, 1])[0]
    names = rng.sample(list(FAMILY), count)
    if rng.random() < 0.3:
        names[0] = f"{rng.choice(['pale', 'deep'])} {names[0]}"
    form = rng.choice(["{}", "a poster in {}", "a blend of {}", "a logo of {}", "a flag of {}"])
    return form.format(listed(names)), names


def _scene(rng: random.Random) -> tuple[str, list[str]]:
    scene = rng.choice(list(SCENES))
    form = rng.choice(["{}", "the {}", "a picture of the {}", "{}, as I remember it", "our {}"])
    return form.format(scene), SCENES[scene].split()


def _accented(rng: random.Random) -> tuple[str, list[str]]:
    scene, accent = rng.choice(list(SCENES)), rng.choice(list(FAMILY))
    form = rng.choice(["{} with a hint of {}", "{}, but some {} in it", "{} and a little {}"])
    return form.format(scene, accent), [*SCENES[scene].split()[:3], accent]


def _mood(rng: random.Random) -> tuple[str, list[str]]:
    mood = rng.choice(list(MOODS))
    form = rng.choice(["a {} room", "{} clothes", "something {}", "a {} website", "a {} card"])
    return form.format(mood), MOODS[mood].split()


def _moody_scene(rng: random.Random) -> tuple[str, list[str]]:
    scene, mood = rng.choice(list(SCENES)), rng.choice(list(MOODS))
    form = rng.choice(["a {} {}", "{} {}", "the {} side of the {}"])
    return form.format(mood, scene), [*MOODS[mood].split()[:2], *SCENES[scene].split()[:2]]


def totto(rng: random.Random) -> Row:
    """A table with highlighted cells, and the sentence that tells what these say."""
    table = records.make(rng, 4)
    table = replace(table, rows=table.rows[: rng.choice([1, 1, 2])])
    form = rng.choice(str.splitlines(TELLS[table.kind]))
    row = rng.randrange(len(table.rows))
    cells, places = _cells(rng, table, _columns(form, table))
    told = [column for column in table.rows[0] if column in _fields(form)]
    return {
        "table_page_title": table.page,
        "table_section_title": table.section,
        "table": cells,
        "highlighted_cells": [places[row, column] for column in told],
        "target": form.format(**records.subject(table), **table.rows[row]),
    }


def _fields(form: str) -> list[str]:
    return [name for _, name, *_ in Formatter().parse(form) if name]


def _columns(form: str, table: records.Table) -> list[str]:
    """The columns that a sentence needs and the first, which tells rows apart."""
    first, *others = table.rows[0]
    return [first, *(column for column in others if column in _fields(form))]


def _cells(rng: random.Random, table: records.Table, columns: list[str]):
    """Rows of cells, and where a row's columns stand among them; equal neighbours are one cell."""
    grid = [[_cell(column, True) for column in columns]]
    if rng.random() < 0.15:
        grid.insert(0, [_cell(table.section, True, across=len(columns))])
    top, places = len(grid), {}
    for number, row in enumerate(table.rows):
        grid.append([])
        for column in columns:
            if number and row[column] == table.rows[number - 1][column]:
                above, index = places[number, column] = places[number - 1, column]
                grid[above][index]["row_span"] += 1
            else:
                places[number, column] = [top + number, len(grid[-1])]
                beside = column in ("Candidate", "Town")
                grid[-1].append(_cell(row[column], beside))
    return grid, places


def _cell(value: str, header: bool, across: int = 1) -> dict[str, Any]:
    return {"value": value, "is_header": header, "column_span": across, "row_span": 1}


def price(rng: random.Random) -> Row:
    """A product for up to 999 dollars, and what it costs."""
    fields = words.product(rng)
    cost = round(words.price(**fields) * rng.lognormvariate(0, 0.08))
    if not 1 <= cost <= 999:
        return price(rng)
    first, second = rng.sample(words.PRODUCTS[fields["kind"]][2].split(";"), 2)
    extra = first if rng.random() < 0.5 else f"{first} and {second}"
    about = rng.choice(ABOUT).format(extra=extra, Grade=fields["grade"].capitalize(), **fields)
    parts = [fields[name] for name in ("brand", "size", "material", "kind")]
    question = QUESTION.format(title=" ".join(parts), about=about)
    return {"prompt": question, "completion": f"{cost}.00"}


def _write_csv(file: Path, rows: Iterable[Row]) -> None:
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, ["description", "colors"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


THEMES = {_named: 5, _scene: 3, _accented: 3, _mood: 1, _moody_scene: 2}  # how often each

if __name__ == "__main__":
    main()
