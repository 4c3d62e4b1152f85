"""`launch.py tokens`: tokenizers side by side, and what is said where there is none."""

import json
import re
from pathlib import Path

import pytest

import launch
from tests.data import made


@pytest.fixture
def tokenizers():
    """Directories `llama` and `phi` here, one of which puts a space before every text."""
    for name in ("llama", "phi"):
        Path(name).mkdir()
        made.KINDS[name](Path(name))
    return ["llama", "phi/tokenizer.json"]


def test_a_table_and_its_numbers(tokenizers, capsys):
    Path("text.txt").write_text("the price is $12.50")
    assert launch.main(["tokens", *tokenizers, "--text", "text.txt", "--up-to", "9"]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith("written to runs/tokens/tokens.json\n")
    found = json.loads(Path("runs/tokens/tokens.json").read_text())
    assert found["up_to"] == 9
    assert found["text"] == {"name": "text.txt", "characters": 19, "words": 4, "bytes": 19}
    assert [facts["tokenizer"] for facts in found["tokenizers"]] == tokenizers
    llama, phi = found["tokenizers"]
    assert llama["alone"]["single"] == llama["after"]["single"] == phi["after"]["single"] == 10
    assert phi["alone"]["single"] == 0 and phi["alone"]["lengths"] == {"2": 10}
    assert re.search(rf"^llama +{llama['vocabulary']} +all +all ", printed, re.MULTILINE)
    row = rf"^phi/tokenizer.json +{phi['vocabulary']} +0 of 10 +all +{phi['per_word']:.2f} "
    assert re.search(row, printed, re.MULTILINE)
    assert "phi/tokenizer.json, not a single token:\nalone       0 (▁ 0), 1 (▁ 1)," in printed
    assert re.search(r"^llama +<\|begin_of_text\|> 0 +<\|end_of_text\|> 1 +none", printed, re.M)


def test_json_is_what_is_written(tokenizers, capsys):
    assert launch.main(["tokens", *tokenizers, "--json", "--workdir", "here"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == json.loads(Path("here/tokens.json").read_text())
    assert "written to here/tokens.json" in printed.err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["./nowhere"], "'./nowhere': no such directory or file, and not a repository id"),
        (
            ["llama", "empty"],
            "empty: cannot read a tokenizer: no tokenizer: expected tokenizer.json",
        ),
        (["llama", "broken"], "broken: cannot read a tokenizer: "),
        (["llama", "odd"], "odd: cannot read a tokenizer: "),
        (["llama", "text.txt"], "text.txt: cannot read a tokenizer: "),
        (["maker/model"], "maker/model: HF_HUB_OFFLINE is set, and it is not in the cache"),
        (["llama", "--text", "text.txt"], "text.txt is empty: expected text to count tokens in"),
        (["llama", "--text", "none.txt"], "none.txt cannot be read: No such file or directory"),
        (["llama", "--text", "bytes.txt"], "bytes.txt is not UTF-8 text"),
        (
            ["llama", "--up-to", "-1"],
            "--up-to: found '-1', expected a whole number from 0 to 9,999,999",
        ),
        ([], "the following arguments are required: TOKENIZER"),
    ],
)
def test_what_cannot_be_read(tokenizers, arguments, message, failure, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("empty", "broken", "odd"):
        Path(name).mkdir()
    Path("broken/tokenizer.json").write_text("{")
    Path("odd/tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {"a": 0}}}')
    Path("text.txt").write_text("\n")
    Path("bytes.txt").write_bytes(b"\xff\xfe\x00")
    assert message in failure("tokens", *arguments)
    assert not Path("runs").exists()
