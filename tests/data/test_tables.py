"""Large row groups of Parquet are decoded once and kept in pieces, in memory or on disk."""

import errno
import random
from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from jaxtune.data import pieces, tables
from jaxtune.data.datafile import FileChanged
from jaxtune.data.errors import DataError, RowError
from jaxtune.data.pieces import Pieces
from jaxtune.data.sources import open_source
from jaxtune.data.tables import Parquet

ROWS = [{"n": n, "text": f"row {n} " * (n % 7), "list": [{"a": n}] * (n % 3)} for n in range(3000)]


@pytest.fixture
def file(tmp_path):
    """Two row groups, with a column of categories among their columns."""
    table = pyarrow.Table.from_pylist(ROWS)
    kinds = pyarrow.array([f"kind {row['n'] % 5}" for row in ROWS]).dictionary_encode()
    parquet.write_table(
        table.append_column("kind", kinds), tmp_path / "a.parquet", row_group_size=2000
    )
    return tmp_path / "a.parquet"


def expected(n):
    return {**ROWS[n], "kind": f"kind {n % 5}"}


@pytest.fixture
def decoded(monkeypatch):
    """Row groups in the order in which they were decoded."""
    found, decode = [], Parquet._decoded

    def noted(self, group):
        found.append(group)
        return decode(self, group)

    monkeypatch.setattr(Parquet, "_decoded", noted)
    return found


@pytest.mark.parametrize("memory", [0, 60_000, 2**30])
@pytest.mark.parametrize("shuffled", [False, True])
def test_a_row_group_is_decoded_once(file, decoded, monkeypatch, memory, shuffled):
    monkeypatch.setattr(tables, "PIECE", 4096)
    source = Parquet(file, Pieces(memory))
    order = random.Random(0).sample(range(3000), 3000) if shuffled else range(3000)
    for _ in range(2):
        assert all(source[n] == expected(n) for n in order)
    assert sorted(decoded) == [0, 1]
    held = [each for each in source._pieces._kept if not isinstance(each, tuple)]
    assert sum(batch.nbytes for batch in held) == source._pieces._held <= memory
    assert len(source._pieces._kept) > 20 and (not held or memory)


@pytest.mark.parametrize("saved", [False, True])
def test_text_that_is_not_utf_8_names_its_row(saved, tmp_path):
    """As a flipped bit makes it; found by `make hostile`."""
    texts = pyarrow.array([b"a", b"\x80", b"b"], "binary").view("string")
    table = pyarrow.table({"text": texts})
    if saved:
        datasets.Dataset(table).save_to_disk(str(tmp_path / "a"))
    else:
        parquet.write_table(table, tmp_path / "a.parquet")
    source = open_source(tmp_path / ("a" if saved else "a.parquet"))
    assert source[0] == {"text": "a"}
    with pytest.raises(RowError, match=r"a(.parquet|\[train\]):2: not valid UTF-8"):
        source[1]


def test_threads_share_what_is_decoded(file, decoded):
    source = Parquet(file, Pieces(0))
    with ThreadPoolExecutor(8) as pool:
        order = random.Random(1).sample(range(3000), 3000)
        assert all(pool.map(lambda n: source[n] == expected(n), order))
    assert sorted(decoded) == [0, 1]


def test_memory_is_shared_by_all_files(file):
    first, second = Parquet(file), Parquet(file)
    assert first._pieces is second._pieces
    assert pieces.shared() is first._pieces


def test_no_room_on_the_disk(file, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pieces.os, "pwrite", full)
    source = Parquet(file, Pieces(0))
    with pytest.raises(DataError, match="No space left on device; set TMPDIR to a directory with"):
        source[0]


def test_damage_is_told_from_change(file):
    whole = file.read_bytes()
    file.write_bytes(b"PAR1" + b"\xff" * (len(whole) // 2) + whole[len(whole) // 2 + 4 :])
    source = Parquet(file, Pieces())
    with pytest.raises(DataError, match=r"a\.parquet: row group 1 is damaged"):
        source[0]
    file.write_bytes(whole)
    source = Parquet(file, Pieces())
    file.write_bytes(b"")
    with pytest.raises(FileChanged, match=r"a\.parquet: .* bytes, now 0"):
        source[0]


def test_a_saved_dataset_whose_offsets_are_damaged(tmp_path):
    """Reading such a row ended the process; found by `make hostile`."""
    datasets.Dataset.from_list([{"a": "some text"}] * 50).save_to_disk(tmp_path / "a")
    (file,) = (tmp_path / "a").glob("*.arrow")
    content = bytearray(file.read_bytes())
    offsets = (9 * np.arange(51, dtype=np.int32)).tobytes()
    at = content.index(offsets) + 4 * 20
    content[at : at + 4] = np.int32(2**30).tobytes()
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"column 'a' is damaged: .*[Oo]ffset"):
        open_source(str(tmp_path / "a"))


def test_a_row_group_with_fewer_rows_than_the_footer_says(tmp_path, monkeypatch):
    """Found by `make hostile`."""
    parquet.write_table(pyarrow.table({"a": [1, 2, 3]}), tmp_path / "a.parquet")
    whole = parquet.ParquetFile.iter_batches
    monkeypatch.setattr(
        parquet.ParquetFile,
        "iter_batches",
        lambda *given, **more: (batch.slice(1) for batch in whole(*given, **more)),
    )
    source = open_source(str(tmp_path / "a.parquet"))
    with pytest.raises(DataError, match="row group 1 is damaged: it holds 2 rows, and the footer"):
        source[2]
