"""Files that are no files, too many files, and files that change while they are read."""

import datetime
import os
import socket

import pytest

from jaxtune.data import datafile
from jaxtune.data.datafile import DataFile, FileChanged, changes
from jaxtune.data.errors import DataError
from jaxtune.data.examples import RowEncoder, columns
from jaxtune.data.sources import open_source
from jaxtune.data.survey import survey

ROWS = [{"prefix": "a", "suffix": f" {n}"} for n in range(6)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "a.json", "a"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, name):
    os.mkfifo(tmp_path / name)
    message = rf"{name}: a named pipe; expected a regular file, because rows are read in any order"
    for spec in (tmp_path / name, f"{tmp_path}/*", [str(tmp_path / name)]):
        with pytest.raises(DataError, match=message):
            open_source(spec)


def test_sockets_devices_and_directories_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("a.jsonl")
        with pytest.raises(DataError, match=r"a.jsonl: a socket; expected a regular file"):
            open_source("a.jsonl")
    with pytest.raises(DataError, match=r"/dev/null: a device; expected a regular file"):
        open_source("/dev/null")
    (tmp_path / "b.jsonl").mkdir()
    with pytest.raises(DataError, match=r"b.jsonl: a directory; expected a regular file"):
        open_source(f"{tmp_path}/b*.jsonl")


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet", "json"])
def test_only_a_few_of_many_files_are_open(tmp_path, monkeypatch, suffix):
    import pyarrow
    from pyarrow import parquet

    texts = {"jsonl": '{"n": "%d"}\n', "csv": "n\n%d\n", "json": '[{"n": "%d"}]'}
    monkeypatch.setattr(datafile, "OPEN", 4)
    before = len(os.listdir("/proc/self/fd"))
    for n in range(40):
        file = tmp_path / f"{n}.{suffix}"
        if suffix == "parquet":
            parquet.write_table(pyarrow.table({"n": [str(n)]}), file)
        else:
            file.write_text(texts[suffix] % n)
    source = open_source(f"{tmp_path}/*.{suffix}")
    for _ in range(2):
        assert [source[n]["n"] for n in range(40)] == [str(n) for n in range(40)]
        assert len(os.listdir("/proc/self/fd")) <= before + 4


def rewrite(file, content, seconds=5):
    """Writes a file in place, with a later time."""
    later = file.stat().st_mtime_ns + seconds * 10**9
    file.write_bytes(content)
    os.utime(file, ns=(later, later))


@pytest.mark.parametrize("way", ["longer", "shorter", "same size", "replaced", "deleted"])
def test_a_file_that_changes_while_it_is_read(write, monkeypatch, way):
    monkeypatch.setattr(datafile, "EVERY", -1)  # compared at each read
    file = write("a.jsonl", ROWS)
    source, old = open_source(file), file.read_bytes()
    assert source[5] == ROWS[5]
    if way == "deleted":
        file.unlink()
    elif way == "replaced":
        write("b.jsonl", ROWS[:3])
        file.with_name("b.jsonl").replace(file)
    else:
        rewrite(file, {"longer": old * 2, "shorter": old[:40], "same size": old[::-1]}[way])
    size = f"{len(old)} bytes, now "
    expected = {
        "longer": rf"{size}{len(old) * 2}; written ",
        "shorter": rf"{size}40; written ",
        "same size": "in use: written .*, now .*",
        "replaced": rf"{size}{len(old) // 2}",
        "deleted": "cannot be read any more: No such file",
    }[way]
    with pytest.raises(FileChanged, match=rf"a\.jsonl: .*{expected}"):
        source[0]
    with pytest.raises(FileChanged):
        source.check()


def test_a_file_cut_short_is_noticed_without_waiting(write):
    file = write("a.jsonl", ROWS)
    source = open_source(file)
    os.truncate(file, 10)
    with pytest.raises(FileChanged, match=r"a\.jsonl: .* \d+ bytes, now 10; written"):
        source[5]


def test_a_file_that_is_opened_anew_must_be_the_same(write, monkeypatch):
    monkeypatch.setattr(datafile, "OPEN", 0)
    file = write("a.jsonl", ROWS)
    source = open_source(file)
    rewrite(file, file.read_bytes())
    with pytest.raises(FileChanged, match="the file changed while it was in use: written"):
        source[0]


def test_a_file_that_changes_during_the_survey(write, tokenizer):
    file = write("a.jsonl", [{**row, "suffix": " b"} for row in ROWS] * 100)
    source = open_source(file)
    encoder = RowEncoder(tokenizer("gemma"), columns(), 64)
    for text in (file.read_bytes().replace(b" b", b" c"), b"{" * file.stat().st_size):
        source = open_source(file)
        with pytest.raises(FileChanged, match=r"a\.jsonl: the file changed"):
            survey(source, encoder, progress=lambda count, text=text: rewrite(file, text))


def test_changes_name_each_file():
    time = int(datetime.datetime(2026, 11, 5, 9, 10).timestamp() * 1e9)
    now = [
        {"name": f"{n}.jsonl", "rows": 12, "bytes": 1200, "written": time, "contents": 7}
        for n in range(3)
    ]
    assert changes(now, now) == []
    longer = {**now[0], "rows": 1300, "bytes": 99_000, "written": time + 10**9}
    other = {**now[1], "contents": 8}
    assert changes(now, [longer, other, now[2]]) == [
        "0.jsonl: 12 rows, now 1,300; 1,200 bytes, now 99,000; written 2026-11-05 09:10:00.000, "
        "now 2026-11-05 09:10:01.000",
        "1.jsonl: other contents of the same size",
    ]
    assert changes(now[:2], now[1:]) == [
        "0.jsonl: no longer among the files",
        "2.jsonl: was not among the files",
    ]
    many = [{"name": f"{n}.csv"} for n in range(1200)]
    assert changes(many, now)[-1] == "and 1,198 more"


def test_the_hub_knows_no_files(tmp_path):
    for name in ("mine/missing.txt", "mine/missing.jsonl.gz", "mine/missing.JSONL"):
        with pytest.raises(DataError, match=rf"{name}: no such file, nor a directory mine"):
            open_source(name)


def test_a_stream_is_read_from_the_start(write):
    file = DataFile(write("a.jsonl", b"words"))
    with file.stream() as stream:
        assert stream.read() == file.read(0, 5) == file.read(0, 99) == b"words"
