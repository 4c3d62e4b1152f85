"""JSON arrays: rows and places as json reads them, in blocks of any size."""

import json
import random

import pytest

from jaxtune.data import jsonarray
from jaxtune.data.errors import DataError, RowError
from jaxtune.data.jsonarray import JsonArray
from jaxtune.data.sources import open_source, set_apart

TEXTS = ['a "quoted" one', "]}, [{", "back\\slash\\", "line\nbreak", "é😀", "", "x" * 90]
ROWS = [{"text": text, "n": [n, {"a": None}]} for n, text in enumerate(TEXTS * 4)]


def everything(source):
    return [source[n] for n in range(len(source))]


@pytest.mark.parametrize("block", [1, 3, 16, 100, 2**22])
@pytest.mark.parametrize("layout", [{}, {"indent": 2}, {"indent": 0, "ensure_ascii": False}])
def test_an_array_is_what_json_reads(write, monkeypatch, block, layout):
    monkeypatch.setattr(jsonarray, "BLOCK", block)
    text = json.dumps(ROWS, **layout)
    for before, after in (("", ""), ("\ufeff", "\n\n"), (" \r\n\t", " ")):
        file = write("a.json", before + text + after)
        source = open_source(file)
        assert isinstance(source, JsonArray) and everything(source) == ROWS
        assert source.notes == (f"{file}: one JSON array of 28 rows",)
        lines = (before + text).split("\n")
        for row in (0, 1, 27):
            line = int(source.place(row).rpartition(":")[2])
            assert lines[line - 1].lstrip(" [\ufeff\t").startswith("{")
        assert source.place(0) == f"{file}:{1 + before.count(chr(10)) + bool(layout)}"


def test_large_rows_and_odd_ones(write, monkeypatch):
    monkeypatch.setattr(jsonarray, "BLOCK", 64)
    random.seed(0)
    rows = [{"a": "".join(random.choices('x"\\[]{},', k=size))} for size in (1, 10**5, 7, 3000)]
    assert everything(open_source(write("a.json", json.dumps(rows)))) == rows
    source = open_source(write("b.json", '[{"a": 1}, 17, "word", [2], -1.5e3, null]'))
    assert source[0] == {"a": 1}
    for row, kind in enumerate(("number", "string", "array", "number", "null"), 1):
        with pytest.raises(RowError, match=f"b.json:1: found a JSON {kind}, expected an array of"):
            source[row]
    with pytest.raises(RowError, match="not valid UTF-8"):
        open_source(write("c.json", b'[{"a": "\xe9"}]'))[0]


@pytest.mark.parametrize("block", [4, 2**22])
@pytest.mark.parametrize(
    "text, message",
    [
        ('[{"a": 1},\n{"a": 2}', "a.json:2: not valid JSON: expected a comma or the end"),
        ('[{"a": 1},\n{"a": 2},', "a.json:2: not valid JSON: Expecting value"),
        ('[{"a": 1},\n{"a": 2},]', "a.json:2: not valid JSON: .*; expected one JSON array of obj"),
        ('[{"a": 1}\n{"a": 2}]', "a.json:2: not valid JSON: expected a comma"),
        (
            '[{"a": 1,\n"b" 2}, {"a": "' + "x" * 99 + '"}]',
            "a.json:2: not valid JSON: Expecting ':'",
        ),
        ('[{"a": 1},\n{"a": "open}]', "a.json:2: not valid JSON: Unterminated string"),
        ("[" * 100_000, "a.json:1: not valid JSON: nested too deeply"),
        ("[ ]", "a.json: the file has no rows; expected an array of objects"),
    ],
)
def test_an_array_that_is_damaged(write, monkeypatch, block, text, message):
    monkeypatch.setattr(jsonarray, "BLOCK", block)
    with pytest.raises(DataError, match=message):
        open_source(write("a.json", text))


def test_lines_that_begin_like_an_array_are_lines(write):
    for first in ("[]", "[1, 2", '[{"a": 1}'):
        source = open_source(write("a.jsonl", f'{first}\n{{"a": 2}}\n'))
        assert len(source) == 2 and source[1] == {"a": 2}
        with pytest.raises(RowError, match=r"a\.jsonl:1: "):
            source[0]


def test_rows_of_an_array_on_one_line_can_be_held_out(write):
    rest, apart = set_apart(open_source(write("a.json", json.dumps(ROWS))), 12)
    assert (len(rest), len(apart)) == (16, 12)


def test_memory_is_bounded_by_the_block(write, monkeypatch):
    monkeypatch.setattr(jsonarray, "BLOCK", 1000)
    longest = 0

    class Scan(jsonarray._Scan):
        def _more(self, size):
            nonlocal longest
            found = super()._more(size)
            longest = max(longest, len(self._text))
            return found

    monkeypatch.setattr(jsonarray, "_Scan", Scan)
    source = open_source(write("a.json", json.dumps(ROWS * 200, indent=1)))
    assert len(source) == 5600 and longest < 2500
