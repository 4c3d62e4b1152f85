"""A survey is made once for the same rows, and again when anything it depends on has changed."""

import os

import numpy as np
import pytest

from jaxtune.data.examples import RowEncoder, columns
from jaxtune.data.sources import Chosen, open_source
from jaxtune.data.survey import survey
from jaxtune.data.survey_cache import cached

ROWS = [{"prefix": "a " * n, "suffix": f" {n}"} for n in range(20)]


@pytest.fixture
def made(write, tokenizer):
    """What a survey of these rows found, one malformed and one too long among them."""
    file = write("a.jsonl", [*ROWS, [], {"prefix": "a " * 200, "suffix": "b"}])
    prompt = RowEncoder(tokenizer("gemma"), columns(), 64, too_long="skip")
    return survey(open_source(file), prompt, malformed="skip")


def refuse():
    raise AssertionError("the rows were read again")


def test_what_is_kept_is_what_was_found(made, tmp_path):
    file = tmp_path / ".rows.npz"
    assert cached(file, ["key"], lambda: made) is made
    again = cached(file, ["key"], refuse)
    for name in ("rows", "lengths", "scored", "pictures"):
        assert np.array_equal(getattr(again, name), getattr(made, name))
    assert (again.cut, again.cut_tokens) == (made.cut, made.cut_tokens)
    assert vars(again.malformed) == vars(made.malformed) and again.malformed.count == 1
    assert vars(again.too_long) == vars(made.too_long) and again.too_long.count == 1


def test_another_key_or_a_damaged_file_is_read_anew(made, tmp_path):
    file = tmp_path / ".rows.npz"
    cached(file, ["key"], lambda: made)
    with pytest.raises(AssertionError, match="read again"):
        cached(file, ["another"], refuse)
    file.write_bytes(file.read_bytes()[:100])
    assert cached(file, ["key"], lambda: made) is made
    assert cached(file, ["key"], refuse).tokens == made.tokens


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_a_source_is_another_when_its_file_changes(write, name):
    import pyarrow
    import pyarrow.parquet

    file = write(name, ROWS if name == "a.jsonl" else "prefix,suffix\na,b\nc,d\n")
    if name == "a.parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), file)
    source = open_source(file)
    before = source.identity
    assert open_source(file).identity == before == open_source([file]).identity
    assert Chosen(source, [0]).identity != Chosen(source, [1]).identity != before
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    os.utime(file, ns=(1, 1))
    assert open_source(file).identity != before
    # With the same size and time, the contents tell.
    whole = file.read_bytes()
    at = whole.rindex(b"prefix") if name == "a.parquet" else len(whole) // 2
    file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    os.utime(file, ns=times)
    assert open_source(file).identity != before
