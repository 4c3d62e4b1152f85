"""What the report says of tokenizers made here."""

import io
import json

import pytest
import sentencepiece
import tokenizers
import transformers
from tokenizers import models
from transformers import PreTrainedTokenizerFast

from jaxtune.cli.inspect.report import inspect
from jaxtune.cli.inspect.table import table
from tests.cli.inspect.checkpoints import bpe, facts, settings


def test_a_saved_tokenizer(llama):
    tokenizer = bpe(llama)
    found = facts(llama)
    assert (found["kind"], found["file"]) == ("BPE", "tokenizer.json")
    assert found["tokens"] == len(tokenizer) == 7
    assert found["special"] == dict(
        bos=dict(token="<s>", id=tokenizer.bos_token_id),
        eos=dict(token="</s>", id=tokenizer.eos_token_id),
        pad=dict(token="<pad>", id=tokenizer.pad_token_id),
        unk=dict(token="<unk>", id=tokenizer.convert_tokens_to_ids("<unk>")),
    )
    assert found["adds_bos"] is True
    assert tokenizer("ab").input_ids[0] == tokenizer.bos_token_id
    assert not found["chat_template"]
    assert found["problems"] == []
    assert inspect(llama).notes == ()


def test_what_ends_a_text(llama):
    bpe(llama)
    generation = llama / "generation_config.json"
    generation.write_text(json.dumps(dict(eos_token_id=[2, 6])))
    assert facts(llama)["stops"] == [dict(token="</s>", id=2), dict(token="ab", id=6)]
    assert facts(llama)["missing"] == []
    generation.unlink()
    assert facts(llama)["stops"] == [dict(token="</s>", id=2)]  # as config.json says
    assert facts(llama)["missing"] == ["generation_config.json"]


def test_unigram(llama):
    made = tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -2.0)], 0))
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="b").save_pretrained(llama)
    found = facts(llama)
    assert (found["kind"], found["tokens"]) == ("Unigram", 3)
    assert found["special"]["eos"] == dict(token="b", id=2)


@pytest.mark.parametrize("told", [True, False, None])
def test_tokenizer_json_decides_about_bos(llama, told):
    bpe(llama)
    settings(llama, **({} if told is None else dict(add_bos_token=told)))
    file = llama / "tokenizer.json"
    parsed = json.loads(file.read_text())
    template, level = parsed["post_processor"], {"type": "Sequence", "processors": []}
    for processor, adds in [
        (template, True),
        (None, False),
        (level, False),
        ({"type": "Sequence", "processors": [level, template]}, True),
        ({**template, "single": template["single"][1:]}, False),
    ]:
        file.write_text(json.dumps(parsed | {"post_processor": processor}))
        found = facts(llama)
        loaded = transformers.AutoTokenizer.from_pretrained(llama)
        assert found["adds_bos"] is adds
        assert (loaded("ab").input_ids[0] == loaded.bos_token_id) is adds
        assert bool(found["problems"]) == (told is not None and told != adds)


def test_chat_templates(llama):
    bpe(llama)
    (llama / "chat_template.jinja").write_text("{{ messages }}")
    assert facts(llama)["chat_template"]
    (llama / "chat_template.jinja").unlink()
    settings(llama, chat_template="{{ messages }}")
    assert facts(llama)["chat_template"]


def test_names_of_special_tokens_elsewhere(llama):
    bpe(llama)
    settings(llama, drop=("bos_token", "eos_token"), pad_token=None)
    named = dict(eos_token=dict(content="ab"), pad_token="b")
    (llama / "special_tokens_map.json").write_text(json.dumps(named))
    special = facts(llama)["special"]
    assert special["eos"] == dict(token="ab", id=6)
    assert special["bos"] == dict(token="<s>", id=1)  # by its number in config.json
    assert special["pad"] is None  # tokenizer_config.json says that there is none


def test_more_tokens_than_rows(llama):
    bpe(llama)
    (llama / "added_tokens.json").write_text(json.dumps({"<image>": 211, "<last>": 210}))
    added = {str(number): dict(content=f"<{number}>") for number in range(212, 216)}
    settings(llama, added_tokens_decoder=added)
    report = inspect(llama)
    assert (report.tokenizer["tokens"], report.tokenizer["past_the_rows"]) == (13, 5)
    assert report.notes == (
        "the tokenizer has 5 tokens beyond the 211 rows of the embedding: "
        "<image> 211, <212> 212, <213> 213, <214> 214 and 1 more",
    )


def test_sentencepiece(llama):
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["hello world these are some pieces"] * 20),
        model_writer=written,
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (llama / "tokenizer.model").write_bytes(written.getvalue())
    found = facts(llama)
    assert (found["kind"], found["file"]) == ("SentencePiece", "tokenizer.model")
    model = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    assert found["tokens"] == model.vocab_size()
    assert found["special"]["bos"] == dict(token="<s>", id=model.bos_id())
    assert found["special"]["unk"] == dict(token="<unk>", id=model.unk_id())
    assert found["adds_bos"] is None
    (llama / "tokenizer_config.json").write_text('{"add_bos_token": true}')
    assert facts(llama)["adds_bos"] is True


def test_no_tokenizer(llama):
    report = inspect(llama)
    assert report.tokenizer["kind"] is None and report.tokenizer["tokens"] == 0
    assert "no tokenizer: expected tokenizer.json or a SentencePiece .model" in report.notes[0]
    assert report.notes[0] in " ".join(table(report).split())


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", '{"model": 3}'),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {"a": "b"}}}'),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {}}, "added_tokens": [7]}'),
        ("tokenizer.json", '{"model": {"vocab": {"a": 0}}, "post_processor": {"processors": 3}}'),
        ("tokenizer.model", "a table of tokens, as tiktoken has it"),
        ("tokenizer.model", ""),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {}}}'),
        ("tokenizer_config.json", "null"),
        ("special_tokens_map.json", "\x00"),
        ("added_tokens.json", '["a"]'),
        ("generation_config.json", '{"eos_token_id": {}'),
    ],
)
def test_odd_files_leave_a_note(llama, file, text):
    bpe(llama)
    if file == "tokenizer.model":
        (llama / "tokenizer.json").unlink()
    (llama / file).write_text(text)
    notes = inspect(llama).notes
    expected = "no tokenizer" if not text else f"{file} cannot be read: "
    assert any(note.startswith(expected) for note in notes)


@pytest.mark.parametrize("value", [7, ["<s>"], {}, "", "<lost>"])
def test_odd_special_tokens(llama, value):
    bpe(llama)
    settings(llama, bos_token=value)
    report = inspect(llama)
    if value == "<lost>":
        assert report.notes == ("the bos token '<lost>' is not in the vocabulary",)
        assert report.tokenizer["special"]["bos"] == dict(token="<lost>", id=None)
    else:
        assert not report.tokenizer["special"]["bos"]
    table(report)
