"""`launch.py prepare`: what it says of rows, and of what it cannot do."""

import json
from pathlib import Path

import pytest

import launch
from tests.cli.test_prepare import lines, official, rows


@pytest.fixture
def source():
    """Ten records, seven of which have no cell to tell of."""
    records = [official(number) for number in range(10)]
    for record in records[3:]:
        record["highlighted_cells"] = []
    return lines(Path("in.jsonl"), records)


def test_what_is_written_and_left_out(source, capsys):
    assert launch.main(["prepare", "totto", "in.jsonl", "data/out.jsonl"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "unusable rows left out: 7"
    assert printed[1] == "  in.jsonl:4: no cell is highlighted, so there is nothing to describe"
    assert printed[6:] == ["  and 2 more", "3 rows written to data/out.jsonl"]
    assert len(rows(Path("data/out.jsonl"))) == 3
    again = ["prepare", "totto", "in.jsonl", "data/out.jsonl", "--rows=2", "--overwrite"]
    assert launch.main(again) == 0
    assert capsys.readouterr().out == "2 rows written to data/out.jsonl\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["palette", "in.jsonl", "out.jsonl"], "task 'palette' reads published data directly"),
        (["tototo", "in.jsonl", "out.jsonl"], "task 'tototo' is not one of 'totto'"),
        (["totto", "im.jsonl", "out.jsonl"], "im.jsonl: no such file; did you mean"),
        (["totto", "in.jsonl", "out.csv"], "out.csv: expected a name ending in .jsonl, .ndj"),
        (["totto", "in.jsonl", "a.json"], "a.json: is a directory; expected the name of a file"),
        (["totto", "in.jsonl", "in.jsonl"], "in.jsonl: already exists; --overwrite replaces it"),
        (["totto", "in.jsonl", "in.jsonl/out.jsonl"], "in.jsonl/out.jsonl: cannot be written: "),
        (
            ["totto", "bad.jsonl", "out.jsonl"],
            "none of the 1 rows can be used; the first: bad.jso",
        ),
        (["totto", "a.json", "out.jsonl"], "a.json: a directory, but not a dataset saved by save_"),
        (
            ["totto", "in.jsonl", "out.jsonl", "--rows=0"],
            "--rows: found '0', expected a whole number from 1 to 1,000,000,000",
        ),
        (["totto", "in.jsonl"], "the following arguments are required: OUT.jsonl"),
    ],
)
def test_what_cannot_be_prepared(source, arguments, message, failure):
    Path("a.json").mkdir()
    lines(Path("bad.jsonl"), [json.dumps({"table": []})])
    before = source.read_bytes()
    assert message in failure("prepare", *arguments)
    assert not Path("out.jsonl").exists() and source.read_bytes() == before
    assert not list(Path().rglob(".*partial*"))
