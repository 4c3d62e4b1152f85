"""Records against what was written, and every way a file can be bad."""

import json
import random

import pytest

from jaxtune.data import datafile, textfiles
from jaxtune.data.errors import DataError, RowError
from jaxtune.data.sources import open_source, set_apart

RECORDS = [{"text": f"row {n} é😀", "n": n} for n in range(25)]


def everything(source):
    return [source[n] for n in range(len(source))]


# JSON lines


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_json_lines(write, end, last, bom):
    text = end.join(json.dumps(r, ensure_ascii=False) for r in RECORDS) + (end if last else "")
    file = write("a.jsonl", bom + text.encode())
    source = open_source(file)
    assert everything(source) == RECORDS
    assert source.place(0) == f"{file}:1" and source.place(24) == f"{file}:25"
    assert source[-1] == RECORDS[-1]
    with pytest.raises(IndexError):
        source[25]


@pytest.mark.parametrize("block", [1, 2, 7, 64, 2**24])
def test_blank_lines_are_passed_over_and_lines_keep_their_numbers(write, monkeypatch, block):
    monkeypatch.setattr(textfiles, "BLOCK", block)
    chance = random.Random(block)
    lines, places = [], []
    for record in RECORDS:
        lines += chance.choices(["", "  ", "\t\r", " " * 9], k=chance.randrange(3))
        lines.append("  " * chance.randrange(2) + json.dumps(record))
        places.append(len(lines))
    file = write("a.jsonl", "\n".join(lines) + "\n\n \n")
    source = open_source(file)
    assert everything(source) == RECORDS
    assert [source.place(n) for n in range(25)] == [f"{file}:{line}" for line in places]


@pytest.mark.parametrize(
    "line, message",
    [
        (b'{"text": "a"', r"a.jsonl:3: not valid JSON: Expecting"),
        (b"\x00", "not valid JSON"),
        (b'[{"text": 1}]', "found a JSON array, expected one object per line"),
        (b"17", "found a JSON number"),
        (b"null", "found a JSON null"),
        (b"true", "found a JSON boolean"),
        (b'"words"', "found a JSON string"),
        (
            b'{"text": "caf\xe9"}',
            "not valid UTF-8: byte 14 of the line is 0xe9; save the file as UTF",
        ),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_a_malformed_line_is_named(write, line, message):
    source = open_source(write("a.jsonl", b'{"text": "a"}\n\n' + line + b'\n{"text": "b"}\n'))
    assert source[0] == {"text": "a"} and source[2] == {"text": "b"}
    with pytest.raises(RowError, match=message) as error:
        source[1]
    assert error.value.place.endswith("a.jsonl:3")


def test_an_indented_object_is_told_what_is_read(write):
    source = open_source(write("a.json", json.dumps({"rows": RECORDS}, indent=2)))
    with pytest.raises(RowError, match="one JSON object per line, or one array of objects"):
        source[0]


# Delimited text


def test_csv(write):
    text = '\n\ufeffdescription,"co,lors"\r\n'[1:]
    text += '"two\nlines, quoted","say ""hi"""\n\nplain, spaced \nß,"\r\n"\n"",\n'
    file = write("a.csv", text)
    source = open_source(file)
    assert everything(source) == [
        {"description": "two\nlines, quoted", "co,lors": 'say "hi"'},
        {"description": "plain", "co,lors": " spaced "},
        {"description": "ß", "co,lors": "\r\n"},
        {"description": "", "co,lors": ""},
    ]
    assert [source.place(n) for n in range(4)] == [f"{file}:{line}" for line in (2, 5, 6, 8)]


def test_csv_is_what_the_csv_module_reads(write):
    import csv
    import io

    chance = random.Random(0)
    rows = [["a", "b"]]
    rows += [["".join(chance.choices('x,"\n\r\té ', k=9)) for _ in "ab"] for _ in range(200)]
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        text = io.StringIO()
        csv.writer(text, delimiter=delimiter).writerows(rows)
        source = open_source(write(name, text.getvalue()))
        assert [list(record.values()) for record in everything(source)] == rows[1:]


@pytest.mark.parametrize(
    "name, text, delimiter",
    [
        ("a.csv", "text;n\nred, blue;1\n\n'a';2\n", ";"),
        ("a.csv", "text\tn\nred, blue\t1\n'a'\t2\n", "\t"),
        ("a.csv", '"text"|n\n"red, blue"|1\n\'a\'|2\n', "|"),
        ("a.csv", "text,n\n\"red, blue\",1\n'a',2\n", ","),
        ("a.tsv", "text,n\n\"red, blue\",1\n'a',2\n", ","),
        ("a.tsv", "text\tn\nred, blue\t1\n'a'\t2\n", "\t"),
    ],
)
def test_the_delimiter_is_detected_and_told(write, name, text, delimiter):
    file = write(name, text)
    source = open_source(file)
    assert everything(source) == [{"text": "red, blue", "n": "1"}, {"text": "'a'", "n": "2"}]
    usual = delimiter == {"a.csv": ",", "a.tsv": "\t"}[name]
    words = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
    told = [] if usual else [f"{file}: fields are separated by {words[delimiter]}"]
    assert list(source.notes) == told == list(open_source([file], limit=1).notes)
    assert open_source([file] * 9).notes[5:] == (["and 4 files more like these"] if told else [])


@pytest.mark.parametrize(
    "text", ["a,b\n1;2,3\n4;5\n", "a;b,c\n1,2;3\n", "a\n1;2\n", "a\n1\n", "a,b;c\n1,2;3\n4,5\n"]
)
def test_commas_are_the_delimiter_unless_another_one_alone_fits(write, text):
    source = open_source(write("a.csv", text))
    assert source.delimiter == "," and source.columns == text.split("\n")[0].split(",")


def test_long_fields_are_read(write):
    source = open_source(write("a.csv", "a,b\n" + "x" * 200_000 + ",1\n"))
    assert len(source[0]["a"]) == 200_000


@pytest.mark.parametrize(
    "line, message",
    [
        (b"1,2,3", "a.csv:3: found 3 fields, but the header has 2"),
        (b"1", "found 1 field, but the header has 2"),
        (b"caf\xe9,1", "not valid UTF-8: byte 4"),
        (b'"a"b,1', "cannot be split into fields"),
    ],
)
def test_a_malformed_csv_row_is_named(write, line, message):
    source = open_source(write("a.csv", b"a,b\n1,2\n" + line + b"\n3,4\n"))
    assert source[0] == {"a": "1", "b": "2"} and source[2] == {"a": "3", "b": "4"}
    with pytest.raises(RowError, match=message):
        source[1]


def test_a_quote_left_open_is_named_where_it_begins(write):
    source = open_source(write("a.csv", 'a,b\n1,2\n3,"4\n5,6\n'))
    with pytest.raises(RowError, match=r"a.csv:3: cannot be split into fields: unexpected end"):
        source[1]


def test_a_header_that_repeats_a_name(write):
    with pytest.raises(DataError, match=r"a.csv:1: the header has \['a'\] more than once"):
        open_source(write("a.csv", "a,b,a\n1,2,3\n"))


# Tables


def test_parquet(tmp_path):
    import pyarrow
    from pyarrow import parquet

    from jaxtune.data.pieces import Pieces
    from jaxtune.data.tables import Parquet

    file = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(RECORDS), file, row_group_size=4)
    for memory in (1, 2**30):  # pieces on disk, or in memory
        source = Parquet(file, Pieces(memory))
        order = random.Random(0).sample(range(25), 25)
        assert [source[n] for n in order] == [RECORDS[n] for n in order]
    assert source.place(4) == f"{file}:5"
    assert everything(open_source(file)) == RECORDS


def test_parquet_that_is_none(write, tmp_path):
    import pyarrow
    from pyarrow import parquet

    with pytest.raises(DataError, match=r"a.parquet: not a Parquet file"):
        open_source(write("a.parquet", b"PAR1 and nothing else"))
    parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "b.parquet")
    content = (tmp_path / "b.parquet").read_bytes()
    with pytest.raises(DataError, match=r"c.parquet: not a Parquet file: 'utf-8' codec"):
        open_source(write("c.parquet", content.replace(b"text", b"\x80ext")))


def test_saved_datasets(tmp_path):
    import datasets

    rows = datasets.Dataset.from_list(RECORDS)
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": rows, "val": rows.select([3])}).save_to_disk(tmp_path / "two")
    assert everything(open_source(tmp_path / "one")) == RECORDS
    source = open_source(tmp_path / "two", split="val")
    assert everything(source) == RECORDS[3:4]
    assert source.place(0) == f"{tmp_path}/two[val]:1"
    with pytest.raises(DataError, match=r"no split 'test'; the splits are \['train', 'val'\]"):
        open_source(tmp_path / "two", split="test")


def test_the_hub_out_of_reach_is_one_message():
    with pytest.raises(DataError) as error:
        open_source("someone/some-prices", split="train")
    message = str(error.value)
    assert message.startswith("someone/some-prices: neither a local file nor a dataset")
    assert "the Hub cannot be reached" in message and "\n" not in message


# Several files


def test_globs_lists_and_limits(write, tmp_path):
    for n in (10, 2, 1):
        write(f"part-{n}.jsonl", [{"part": n, "row": row} for row in range(n)])
    one = write("z.csv", "part,row\n0,0\n")
    source = open_source([one, f"{tmp_path}/part-*.jsonl"])
    expected = [{"part": "0", "row": "0"}]
    expected += [{"part": n, "row": row} for n in (1, 2, 10) for row in range(n)]
    assert everything(source) == expected
    assert source.place(0) == f"{one}:2" and source.place(3).endswith("part-2.jsonl:2")
    assert everything(open_source(f"{tmp_path}/part-*.jsonl", limit=2)) == expected[1:3]
    assert len(open_source(one, limit=9)) == 1


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.jsonl", b"", "a.jsonl: the file is empty"),
        ("a.csv", b"", "a.csv: the file is empty"),
        ("a.jsonl", b"\n \n", "a.jsonl: the file has no rows; expected one JSON object per line"),
        ("a.csv", b"a,b\n", "a.csv: the file has no rows; expected a header followed by rows"),
        ("a.jsonl", '{"a": 1}'.encode("utf-16"), "is UTF-16; save it as UTF-8"),
        ("a.txt", b"words", r"a.txt: unknown file type; expected one of \.jsonl, "),
    ],
)
def test_files_that_hold_nothing(write, name, content, message):
    with pytest.raises(DataError, match=message):
        open_source(write(name, content))


def test_paths_that_are_not_there(write, tmp_path):
    write("train.jsonl", RECORDS)
    nearest = r"trian.jsonl: no such file; did you mean .*/train.jsonl\?"
    with pytest.raises(DataError, match=nearest):
        open_source(tmp_path / "trian.jsonl")
    with pytest.raises(DataError, match="no such file, nor a directory"):
        open_source(tmp_path / "none" / "train.jsonl")
    with pytest.raises(DataError, match=r"\*.csv: no file matches"):
        open_source(f"{tmp_path}/*.csv")
    with pytest.raises(DataError, match=r"a directory, but not a dataset .* name the files in it"):
        open_source(tmp_path)
    with pytest.raises(DataError, match="empty list"):
        open_source([])


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_a_file_that_may_not_be_read(write, monkeypatch, name):
    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied", "a")

    file = write(name, b"words")
    monkeypatch.setattr(datafile.os, "open", refuse)  # root may read everything
    with pytest.raises(DataError, match=f"{name}: cannot be read: Permission denied"):
        open_source(file)


def test_a_path_that_cannot_be_opened(tmp_path):
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match=r"a.jsonl: (cannot be read: Too many|no such file)"):
        open_source(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").mkdir()
    with pytest.raises(DataError, match=r"b.jsonl: a directory"):
        open_source(tmp_path / "b.jsonl")


def test_rows_set_apart_are_the_same_each_time(write):
    source = open_source(write("a.jsonl", [{"n": n} for n in range(50)]))
    rest, apart = set_apart(source, 8)
    assert (len(rest), len(apart)) == (42, 8)
    numbers = [[source[row]["n"] for row in range(len(source))] for source in (rest, apart)]
    assert sorted(numbers[0] + numbers[1]) == list(range(50)) and numbers[0] == sorted(numbers[0])
    assert numbers[1] != list(range(8)) and numbers[1] != list(range(42, 50))  # from everywhere
    assert apart.place(0) == source.place(numbers[1][0])
    again = [row["n"] for row in set_apart(source, 8)[1]]
    assert again == numbers[1]
    with pytest.raises(DataError, match="cannot hold out 50 of 50 rows"):
        set_apart(source, 50)
