"""What is detected in the rows of a config is told, and once."""

import io
from pathlib import Path

from jaxtune.assembly.assemble import Assembly
from jaxtune.assembly.rows import notes
from jaxtune.config.load import parse
from jaxtune.config.training_sections import Data
from jaxtune.data.sources import open_source
from jaxtune.display.progress import Progress

BASE = Path(__file__).parents[2] / "configs" / "tiny" / "base"


def test_a_format_that_was_detected_is_told_once(tmp_path):
    (tmp_path / "a.csv").write_text("prefix;suffix\n" + "a;b\n" * 20)
    data = {"source": str(tmp_path / "a.csv")}
    config = parse({"model": {"path": str(BASE)}, "data": data, "eval": {"holdout": 4}})
    assembly, out = Assembly(config, BASE, "2026-11-05"), io.StringIO()
    for source in assembly.sources:
        assembly.survey(source, Progress(out))
    assert out.getvalue() == f"{tmp_path}/a.csv: fields are separated by semicolons\n"


def test_messages_of_sharegpt_are_told(tmp_path):
    file = tmp_path / "a.jsonl"
    for line, told in (
        (
            '{"talk": [{"from": "human", "value": "a"}]}',
            ["data.messages: the messages have 'from'"],
        ),
        ('{"talk": [{"role": "user", "content": "a"}]}', []),
        ('{"talk": null}', []),
        ('{"other": 1}', []),
        ("{", []),
    ):
        file.write_text(line + "\n")
        found = notes(Data(messages="talk"), open_source(file))
        assert [note[: len(each)] for note, each in zip(found, told, strict=True)] == told
    assert notes(Data(), open_source(file)) == []
