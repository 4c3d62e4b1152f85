"""Facts of tokenizers beside those of the tokenizers that transformers opens."""

import json

import pytest
from transformers import AutoTokenizer

from jaxtune.cli import tokens
from jaxtune.export.distance import SAMPLE
from tests.data import made


@pytest.fixture(scope="module", params=["gemma", "llama", "phi", "mistral"])
def directory(request, tmp_path_factory):
    """Of a tokenizer whose vocabulary has some of the integers."""
    found = tmp_path_factory.mktemp(request.param)
    made.KINDS[request.param](found)
    return found


def test_counts_are_the_reference_s(directory):
    reference = AutoTokenizer.from_pretrained(directory)
    cut = [reference.encode(str(n), add_special_tokens=False) for n in range(200)]
    found = tokens.facts(str(directory), SAMPLE, 199)
    assert found.alone.single == sum(len(ids) == 1 for ids in cut)
    lengths = [len(ids) for ids in cut]
    assert found.alone.lengths == {str(n): lengths.count(n) for n in sorted(set(lengths))}
    assert [(each.number, len(each.pieces)) for each in found.alone.first] == [
        (number, size) for number, size in enumerate(lengths) if size > 1
    ][:4]
    # After a text no space is put before it, so what the vocabulary has is one token; and so is a
    # digit that it lacks, as a byte.
    known = [str(n) in reference.get_vocab() or n < 10 for n in range(200)]
    assert found.after.single == sum(known) > 10
    assert [each.number for each in found.after.first] == [n for n in range(200) if not known[n]][
        :4
    ]
    assert all("".join(each.pieces) == str(each.number) for each in found.after.first)
    counted = len(reference.encode(SAMPLE, add_special_tokens=False))
    assert found.tokens == counted and found.vocabulary == len(reference)
    assert found.per_word == counted / len(SAMPLE.split())
    assert found.per_byte == counted / len(SAMPLE.encode())
    assert (found.special["bos"] or {}).get("id") == reference.bos_token_id
    assert found.special["eos"] == {"id": reference.eos_token_id, "token": reference.eos_token}


def test_an_unknown_number_is_no_token_of_its_own(tmp_path):
    """A vocabulary without 7: the token for what is unknown is one, and says nothing."""
    vocabulary = {"<unk>": 0, **{str(n): n + 1 for n in range(7)}}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"unk_token": "<unk>"}))
    found = tokens.report([str(tmp_path)], None, 9)
    [facts] = found.tokenizers
    assert (facts.after.single, facts.after.unknown) == (7, 3)
    assert facts.after.first[0] == tokens.Number(7, ("<unk>",))
    assert facts.unknown == facts.tokens == 1
    assert "unknown     1 of the 1 tokens of the text" in tokens.table(found)
