"""Published records as the JSON lines of a task: what is written, what is left out, never half."""

import json
import os
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest

from jaxtune.cli import prepare as preparing
from jaxtune.cli.prepare import prepare
from jaxtune.data import textfiles
from jaxtune.data.errors import DataError, RowError
from jaxtune.data.sources import open_source
from jaxtune.tasks import totto

CELL = {"column_span": 1, "is_header": False, "row_span": 1}


def official(number: int) -> dict:
    """A record as the release of ToTTo has it."""
    return {
        "table_page_title": "Ann Smith",
        "table_webpage_url": "http://example.org/wiki/Ann_Smith",
        "table_section_title": "Career",
        "table_section_text": "",
        "table": [
            [{**CELL, "is_header": True, "value": "Goals"}],
            [{**CELL, "value": str(number)}],
        ],
        "highlighted_cells": [[1, 0]],
        "example_id": number,
        "sentence_annotations": [
            {"original_sentence": "…", "final_sentence": f"Ann Smith scored {number} goals."},
            {
                "original_sentence": "…",
                "final_sentence": f"She scored {number} goals – “{number}”.",
            },
            {"original_sentence": "…", "final_sentence": f"Ann Smith scored {number} goals."},
        ],
    }


def gem(number: int) -> dict:
    """The same record as the other publication has it."""
    found = official(number)
    sentences = [each["final_sentence"] for each in found["sentence_annotations"]]
    return {
        **found,
        "gem_id": f"totto-train-{number}",
        "target": sentences[0],
        "references": sentences[:2],
        "linearized_input": "<page_title> …",
    }


def lines(file: Path, records: list[dict | str]) -> Path:
    written = [each if isinstance(each, str) else json.dumps(each) for each in records]
    file.write_text("".join(f"{each}\n" for each in written))
    return file


def rows(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]]


def parquet(directory: Path, records: list[dict]) -> Path:
    table = pyarrow.Table.from_pylist(records)
    pyarrow.parquet.write_table(table, directory / "totto.parquet")
    return directory / "totto.parquet"


def saved(directory: Path, records: list[dict]) -> Path:
    import datasets

    found = datasets.DatasetDict({"train": datasets.Dataset.from_list(records)})
    found.save_to_disk(directory / "saved")
    return directory / "saved"


@pytest.mark.parametrize("record", [official, gem])
@pytest.mark.parametrize(
    "write", [parquet, saved, lambda directory, records: lines(directory / "a.jsonl", records)]
)
def test_every_layout_gives_the_same_rows(write, record, tmp_path):
    source = write(tmp_path, [record(number) for number in range(3)])
    found = prepare("totto", str(source), tmp_path / "new" / "out.jsonl")
    assert (found.rows, found.left_out.count) == (3, 0)
    for number, row in enumerate(rows(found.file)):
        assert row == {
            "table_page_title": "Ann Smith",
            "table_section_title": "Career",
            "table_section_text": "",
            "table": official(number)["table"],
            "highlighted_cells": [[1, 0]],
            "target": f"Ann Smith scored {number} goals.",
            "references": [
                f"Ann Smith scored {number} goals.",
                f"She scored {number} goals – “{number}”.",
            ],
        }
        assert {*totto.COLUMNS, "references"} == {*row}
    again = open_source(found.file)
    for index in range(3):
        assert totto.prefix(again[index], "here") == totto.prefix(record(index), "here")
        assert totto.suffix(again[index], "here") == totto.suffix(record(index), "here")
    assert os.listdir(tmp_path / "new") == ["out.jsonl"]


def test_rows_that_cannot_be_used_are_left_out_with_their_places(tmp_path):
    bad = [
        {**official(1), "highlighted_cells": [[7, 7]]},
        {**official(2), "sentence_annotations": "none"},
        {**official(3), "highlighted_cells": []},
        "{",
        {**official(5), "table_page_title": "\ud800"},
        {**official(6), "table": None},
    ]
    source = lines(tmp_path / "in.jsonl", [official(0), *bad, official(9)])
    found = prepare("totto", str(source), tmp_path / "out.jsonl")
    assert [row["target"].split()[3] for row in rows(found.file)] == ["0", "9"]
    assert (found.rows, found.left_out.count) == (2, 6)
    problems = (
        "do not match",
        "no sentence",
        "no cell is highlighted",
        "not valid JSON",
        "cannot be written as JSON: 'utf-8' codec",
    )
    for number, (said, problem) in enumerate(zip(found.left_out.first, problems, strict=True)):
        assert said.startswith(f"{source}:{number + 2}: ") and problem in said


def test_the_first_rows_alone(tmp_path):
    source = lines(tmp_path / "in.jsonl", [official(number) for number in range(600)])
    told = []
    found = prepare(
        *("totto", str(source), tmp_path / "out.jsonl"), rows=513, tell=lambda *at: told.append(at)
    )
    assert len(rows(found.file)) == found.rows == 513
    assert told == [(256, 513), (512, 513)]


def test_what_is_there_is_replaced_only_when_asked(tmp_path):
    source = lines(tmp_path / "in.jsonl", [official(0)])
    out = tmp_path / "out.jsonl"
    out.write_text("earlier")
    with pytest.raises(ValueError, match="already exists; --overwrite replaces it"):
        prepare("totto", str(source), out)
    assert out.read_text() == "earlier"
    assert prepare("totto", str(source), out, overwrite=True).rows == len(rows(out)) == 1


def task(prepared) -> SimpleNamespace:
    return SimpleNamespace(prepared=prepared, prefix=lambda *_: "", suffix=lambda *_: "")


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, DataError])
def test_a_failure_on_the_way_leaves_what_was_there(error, tmp_path, monkeypatch):
    source = lines(tmp_path / "in.jsonl", [{"number": number} for number in range(3)])
    out = tmp_path / "out.jsonl"
    out.write_text("earlier")

    def prepared(record, place):
        if record["number"] == 2:
            raise error("half way")
        return record

    monkeypatch.setattr(preparing, "_task", lambda name: task(prepared))
    with pytest.raises(error, match="half way"):
        prepare("totto", str(source), out, overwrite=True)
    assert out.read_text() == "earlier" and sorted(os.listdir(tmp_path)) == ["in.jsonl", out.name]


def test_a_file_that_came_meanwhile_stays(tmp_path, monkeypatch):
    source = lines(tmp_path / "in.jsonl", [{"number": 0}])
    out = tmp_path / "out.jsonl"

    def prepared(record, place):
        out.write_text("another's")
        return record

    monkeypatch.setattr(preparing, "_task", lambda name: task(prepared))
    with pytest.raises(ValueError, match="already exists; --overwrite"):
        prepare("totto", str(source), out)
    assert out.read_text() == "another's" and sorted(os.listdir(tmp_path)) == ["in.jsonl", out.name]


def test_rows_are_checked_as_they_will_be_read(tmp_path, monkeypatch):
    source = lines(tmp_path / "in.jsonl", [{"number": 0}, {"number": 1}])

    def suffix(record, place):
        if record["number"]:
            raise RowError(place, "has no answer")

    made = task(lambda record, place: record)
    made.suffix = suffix
    monkeypatch.setattr(preparing, "_task", lambda name: made)
    found = prepare("totto", str(source), tmp_path / "out.jsonl")
    assert found.rows == 1 and found.left_out.first == [f"{source}:2: has no answer"]


def test_rows_are_not_gathered_in_memory(tmp_path, monkeypatch):
    """Of 24 MB of rows, no more than one is held at once, in a few forms."""
    monkeypatch.setattr(textfiles, "BLOCK", 2**16)  # of the file, looked through for lines
    with open(tmp_path / "in.jsonl", "w") as out:
        for number in range(120):
            out.write(json.dumps({**official(number), "table_page_title": "x" * 200_000}) + "\n")
    tracemalloc.start()
    prepare("totto", str(tmp_path / "in.jsonl"), tmp_path / "out.jsonl")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (tmp_path / "out.jsonl").stat().st_size > 24e6
    assert peak < 4e6


def test_a_dataset_that_is_a_script(tmp_path, monkeypatch):
    import datasets

    def refuse(*_, **__):
        raise RuntimeError("Dataset scripts are no longer supported, but found totto.py")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with pytest.raises(DataError, match=r"GEM/totto: .*add --revision refs/convert/parquet"):
        prepare("totto", "GEM/totto", tmp_path / "out.jsonl")
    with pytest.raises(DataError, match="neither a local file nor a dataset"):
        prepare("totto", "GEM/totto", tmp_path / "out.jsonl", revision="main")
