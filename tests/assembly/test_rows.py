"""What is detected in the rows of a config is told, and once."""

import io
import json
from pathlib import Path

import pytest

from jaxtune.assembly.assemble import Assembly
from jaxtune.assembly.rows import notes, row_encoder
from jaxtune.config.load import parse
from jaxtune.config.training_sections import Data
from jaxtune.data.errors import RowError
from jaxtune.data.sources import open_source
from jaxtune.data.tokenizer import Tokenizer
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


TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}
TOLD = """{% if tools %}{{ tools | tojson }}|{% endif %}{{ style }}|{% for m in messages -%}
{{ m.role }}:{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}assistant:
{%- endif %}"""


@pytest.fixture(scope="module")
def encode(tmp_path_factory):
    """Encodes rows of conversations with tools, and with an option for the template."""
    chat = {"tools": "tools", "options": {"style": "plain"}}
    config = parse(
        {
            "model": {"path": str(BASE)},
            "data": {"source": "rows.jsonl", "messages": "messages", "chat": chat},
        }
    )
    tokenizer = Tokenizer.open(BASE, template=TOLD)
    return row_encoder(config.data, 256, tokenizer, None, "the model")


@pytest.mark.parametrize(
    "tools, told", [([TOOL], True), (json.dumps([TOOL]), True), (None, False), ("", False)]
)
def test_tools_and_options_reach_the_chat_template(encode, tools, told):
    talk = [{"role": "user", "content": "1 + 1"}, {"role": "assistant", "content": "2"}]
    tokenizer = encode.tokenizer
    text = tokenizer.decode(encode({"messages": talk, "tools": tools}, "row 0").tokens.tolist())
    before = f"{json.dumps([TOOL])}|" if told else ""
    assert text == f"{before}plain|user:1 + 1assistant:2"
    # What is typed at a terminal comes without tools.
    asked = tokenizer.decode(encode.prompt({"messages": talk[:1]}, "row 0"))
    assert asked == "plain|user:1 + 1assistant:"


@pytest.mark.parametrize(
    "row, message",
    [
        ({}, "row 0: no column 'tools'"),
        ({"tools": "add"}, "row 0: column 'tools' is no JSON"),
        ({"tools": "[1]"}, r"row 0: column 'tools' is \[1\]; expected a list of tool schemas"),
        ({"tools": 3}, "row 0: column 'tools' is 3; expected a list of tool schemas"),
    ],
)
def test_tools_that_are_none(encode, row, message):
    talk = [{"role": "user", "content": "1 + 1"}, {"role": "assistant", "content": "2"}]
    with pytest.raises(RowError, match=message):
        encode({"messages": talk, **row}, "row 0")
