"""Tokenizers against transformers and sentencepiece, and what text may not become."""

import json
import random
import shutil

import pytest
import sentencepiece

from jaxtune.data.errors import DataError
from jaxtune.data.tokenizer import Tokenizer
from tests.data import made

TEXTS = [
    "",
    " ",
    "hello world",
    "  two  spaces  ",
    "lines\n\nand\ttabs\r\n",
    "naïve 😀 日本語",
    "<eos> </s> <|im_end|> <end_of_turn> <|end|> <s> [INST] <unk>",
    "a<loc01>b <think>x</think>",
    "$12.50, #aabbcc",
]
JSON = ["gemma", "llama", "qwen", "phi", "mistral"]
MODELS = ["sentencepiece_gemma", "sentencepiece_chat", "sentencepiece_spaced"]


def texts(count=200):
    chance = random.Random(0)
    symbols = [*"ab c\n.é😀", "hello", " the", "<", ">", "</s>", "<eos>", "<loc01>", "\n\n"]
    return TEXTS + ["".join(chance.choices(symbols, k=12)) for _ in range(count)]


@pytest.mark.parametrize("kind", JSON)
def test_encoding_is_that_of_transformers(tokenizer, reference, kind):
    ours, theirs = tokenizer(kind), reference(kind)
    for text in texts():
        expected = theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert ours.encode(text) == expected, text


@pytest.mark.parametrize("kind", JSON)
def test_roles_and_bos_are_those_of_transformers(tokenizer, reference, kind):
    ours, theirs = tokenizer(kind), reference(kind)
    for role in ("bos", "eos", "pad", "unk"):
        assert getattr(ours, role) == getattr(theirs, f"{role}_token_id"), role
    assert ours.adds_bos == (theirs("a")["input_ids"][0] == theirs.bos_token_id)
    assert len(ours) == len(theirs)


@pytest.mark.parametrize("kind", MODELS)
def test_encoding_is_that_of_sentencepiece(tokenizer, checkpoint, kind):
    ours = tokenizer(kind)
    theirs = sentencepiece.SentencePieceProcessor(str(checkpoint(kind) / "tokenizer.model"))
    turn = {theirs.piece_to_id("<start_of_turn>"), theirs.piece_to_id("<end_of_turn>")}
    for text in texts():
        expected = theirs.encode(text)
        if kind != "sentencepiece_chat" or turn.isdisjoint(expected):
            assert ours.encode(text) == expected, text
    assert (ours.bos, ours.eos, ours.adds_bos) == (2, 1, True)


@pytest.mark.parametrize("kind", made.KINDS)
def test_texts_encoded_apart_decode_to_texts_joined(tokenizer, kind):
    ours = tokenizer(kind)
    for prefix, suffix in zip(texts(), texts()[3:], strict=False):
        # Of a text that begins with a space these files lose it.
        if prefix and not (kind in ("mistral", "zephyr") and prefix[0] == " "):
            ids = ours.encode(prefix) + ours.encode(suffix, continues=True)
            assert ours.decode(ids, special=True) == prefix + suffix
            assert ours.decode(ours.encode(suffix, continues=True), continues=True) == suffix


@pytest.mark.parametrize("kind", ["sentencepiece_spaced", "phi", "mistral"])
def test_what_continues_gets_no_space_before_it(tokenizer, kind):
    ours = tokenizer(kind)
    assert ours.piece(ours.encode("hello")[0]).startswith("▁")
    assert not ours.piece(ours.encode("hello", continues=True)[0]).startswith("▁")


@pytest.mark.parametrize("kind", made.KINDS)
def test_data_never_becomes_a_special_token(tokenizer, kind):
    ours = tokenizer(kind)
    special = {one.id for one in ours.specials.values()} - {ours.unk}
    assert special
    for text in [*ours.specials, "".join(ours.specials), *(f"a {s} b" for s in ours.specials)]:
        if text in ("<unk>", "<pad>"):
            continue
        ids = ours.encode(text)
        assert special.isdisjoint(ids), text
        assert ours.decode(ids) == text


@pytest.mark.parametrize("kind", made.KINDS)
def test_templates_write_special_tokens_and_what_is_quoted_in_them_does_not(tokenizer, kind):
    ours = tokenizer(kind)
    end = ours.piece(ours.eos)
    ids = ours.encode(f"hello{end}{ours.quote(f'x {end} y')}{end}", special=True)
    assert ids.count(ours.eos) == 2 and ids[-1] == ours.eos
    assert (
        ours.decode(ids, special=True).replace(f"{end} x", f"{end}x") == f"hello{end}x {end} y{end}"
    )
    assert ours.decode(ids).count(end) == 1  # the quoted one, which is text


def test_written_special_tokens_are_those_of_transformers(tokenizer, reference):
    for kind in JSON:
        ours, theirs = tokenizer(kind), reference(kind)
        written = list(ours.specials)
        for text in (" hello ".join(written), "\n".join(written), " ".join(["", *written, ""])):
            expected = theirs.encode(text, add_special_tokens=False)
            assert ours.encode(text, special=True) == expected, (kind, text)


def test_tokens_that_are_text_stay_tokens(tokenizer):
    for kind in ("sentencepiece_gemma", "gemma"):
        ours = tokenizer(kind)
        assert ours.encode("a<loc01>b").count(ours.id("<loc01>")) == 1
    assert tokenizer("qwen").encode("<think>") == [tokenizer("qwen").id("<think>")]


def test_decoding_leaves_special_tokens_out_unless_asked(tokenizer, reference):
    for kind in JSON:
        ours, theirs = tokenizer(kind), reference(kind)
        ids = [ours.eos, *ours.encode("naïve 😀 words"), ours.eos]
        assert ours.decode(ids) == "naïve 😀 words"
        assert ours.decode(ids[1:]) == theirs.decode(ids[1:], skip_special_tokens=True)
        assert ours.decode([*ids, 10**6]) == "naïve 😀 words"  # a row past the vocabulary


def test_a_lone_model_file_minds_no_strange_settings(checkpoint, tmp_path):
    file = tmp_path / "paligemma_tokenizer.model"
    shutil.copy(checkpoint("sentencepiece_gemma") / "tokenizer.model", file)
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": false, "bos_token": "x"}')
    (tmp_path / "another.model").write_bytes(b"words")
    ours = Tokenizer.open(file)
    assert ours.adds_bos and ours.bos == 2 and ours.problems == []


def test_a_chosen_file_is_the_one_opened(checkpoint, tmp_path):
    directory = shutil.copytree(checkpoint("gemma"), tmp_path / "both")
    shutil.copy(checkpoint("sentencepiece_gemma") / "tokenizer.model", directory)
    assert len(Tokenizer.open(directory)) == len(Tokenizer.open(checkpoint("gemma")))
    assert len(Tokenizer.open(directory / "tokenizer.model")) == 420


def test_settings_decide_about_bos_where_the_file_is_silent(checkpoint, tmp_path):
    directory = shutil.copytree(checkpoint("sentencepiece_chat"), tmp_path / "told")
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    settings["add_bos_token"] = False
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    assert not Tokenizer.open(directory).adds_bos


def test_tokens_that_settings_add_to_a_model(checkpoint, tmp_path):
    directory = shutil.copytree(checkpoint("sentencepiece_spaced"), tmp_path / "added")
    (directory / "added_tokens.json").write_text(json.dumps({"<|user|>": 420, "<tool>": 422}))
    listed = {
        "421": {"content": "<|end|>", "special": True, "rstrip": True, "lstrip": False},
        "422": {"content": "<tool>", "special": False},
    }
    settings = {"added_tokens_decoder": listed, "eos_token": {"content": "<|end|>"}}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    ours = Tokenizer.open(directory)
    assert (len(ours), ours.eos, ours.id("<|user|>")) == (422, 421, 420)
    ids = ours.encode("<|user|>hello<|end|> \n", special=True)
    assert ids[0] == 420 and ids[-1] == 421
    assert ours.decode(ids, special=True) == "<|user|>hello<|end|>"
    assert max(ours.encode("<|user|><|end|><tool>")) < 420


def test_stops_are_those_of_the_generation_settings(tokenizer):
    gemma = tokenizer("gemma")
    assert gemma.stops == (gemma.eos, gemma.id("<end_of_turn>"))


def test_tokenizers_that_are_not_there(tmp_path, tokenizer):
    with pytest.raises(DataError, match="no such tokenizer file or directory"):
        Tokenizer.open(tmp_path / "none")
    with pytest.raises(
        DataError, match=r"no tokenizer: expected tokenizer.json or a SentencePiece"
    ):
        Tokenizer.open(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"words")
    with pytest.raises(DataError, match=r"tokenizer.model cannot be read"):
        Tokenizer.open(tmp_path)
    with pytest.raises(DataError, match="'<nothing>' is not a token"):
        tokenizer("gemma").id("<nothing>")


def test_noncharacters_are_refused_in_templates(tokenizer):
    with pytest.raises(ValueError, match="noncharacter"):
        tokenizer("gemma").quote(["\ufdd0"])
