"""Tokenizers that travel with exports: transformers opens them as the run used them."""

import json

import pytest
from transformers import AutoTokenizer

from jaxtune.checkpoint.companions import TokenizerFiles
from jaxtune.data.tokenizer import Tokenizer
from tests.data import made

TEXT = "hello world, this is"
OWN = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
ADAPTER = '{"peft_type": "LORA", "base_model_name_or_path": "maker/base"}'


def carried(place, target, template=None):
    """The tokenizer of a place beside an adapter, as ours and as transformers opens it there."""
    ours = Tokenizer.open(place, template=template)
    target.mkdir()
    (target / "adapter_config.json").write_text(ADAPTER)
    files = TokenizerFiles.of(place, ours, place)
    files.write(target, whole=False)
    found = sorted(each.name for each in target.iterdir())
    assert found == sorted([*files.names, "adapter_config.json"])
    return ours, AutoTokenizer.from_pretrained(target), found


def check_same(ours, theirs):
    assert theirs.encode(TEXT, add_special_tokens=False) == ours.encode(TEXT)
    assert theirs.encode(TEXT)[: ours.adds_bos] == [ours.bos][: ours.adds_bos]
    assert (theirs.bos_token_id, theirs.eos_token_id) == (ours.bos, ours.eos)
    assert theirs.chat_template == ours.chat_template


@pytest.mark.parametrize(
    "maker", ["gemma", "llama", "qwen", "sentencepiece_chat", "sentencepiece_gemma"]
)
def test_a_directory(maker, tmp_path):
    (tmp_path / "base").mkdir()
    getattr(made, maker)(tmp_path / "base")
    ours, theirs, names = carried(tmp_path / "base", tmp_path / "out")
    check_same(ours, theirs)
    assert "tokenizer_config.json" in names and "generation_config.json" not in names
    assert "chat_template.jinja" not in names  # the files state it already


@pytest.mark.parametrize("spaced", [False, True])
def test_a_file_of_any_name_without_settings(spaced, tmp_path):
    changes = {"bos_piece": "<s>", "eos_piece": "</s>", "add_dummy_prefix": True} if spaced else {}
    file = tmp_path / "paligemma_tokenizer.model"
    made.train_sentencepiece(file, **changes)
    for place in (file, tmp_path):
        ours, theirs, names = carried(place, tmp_path / f"out-{place.name}")
        check_same(ours, theirs)
        assert names == ["adapter_config.json", "tokenizer.model", "tokenizer_config.json"]


def test_the_template_of_the_run(tmp_path):
    (tmp_path / "base").mkdir()
    made.gemma(tmp_path / "base")
    (tmp_path / "base/chat_template.json").write_text(json.dumps({"chat_template": "old"}))
    ours, theirs, names = carried(tmp_path / "base", tmp_path / "out", OWN)
    check_same(ours, theirs)
    assert (tmp_path / "out/chat_template.jinja").read_text() == OWN
    assert theirs.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == (
        "<bos>a"
    )
    assert "chat_template.json" not in names


def test_one_file_of_a_directory_with_two(tmp_path):
    (tmp_path / "base").mkdir()
    made.gemma(tmp_path / "base")
    made.train_sentencepiece(tmp_path / "base/tokenizer.model")
    ours, theirs, names = carried(tmp_path / "base/tokenizer.model", tmp_path / "out")
    assert theirs.encode(TEXT, add_special_tokens=False) == ours.encode(TEXT)
    assert "tokenizer.json" not in names


def test_a_whole_model_says_how_to_generate(tmp_path):
    (tmp_path / "base").mkdir()
    made.gemma(tmp_path / "base")
    (tmp_path / "out").mkdir()
    place = tmp_path / "base"
    TokenizerFiles.of(place, Tokenizer.open(place), place).write(tmp_path / "out", whole=True)
    stops = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert stops["eos_token_id"] == [1, 5]
