"""Texts that are not valid Unicode are refused with the place of each."""

import json

import pytest

from jaxtune.data.backends import Special
from jaxtune.data.errors import RowError
from jaxtune.data.examples import Chat, Template, Written
from jaxtune.data.markup import Markup, check_texts
from tests.data import made
from tests.data.rows import PLACE, make

HALF = "a\ud800b"


@pytest.mark.parametrize("kind", made.KINDS)
def test_half_a_character_is_no_text(tokenizer, kind):
    ours = tokenizer(kind)
    for text in (HALF, f"é{HALF}", "\udfff"):
        for special in (False, True):
            with pytest.raises(ValueError, match=r"^the text contains half of a character \(the l"):
                ours.encode(text, special=special)
    with pytest.raises(ValueError, match=r"^the text\[1\] contains half .* position 1; remove"):
        ours.quote(["a", HALF])
    assert ours.decode(ours.encode("a😀b")) == "a😀b"


def chat(content):
    return {
        "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "b"}]
    }


@pytest.mark.parametrize(
    "form, record, where",
    [
        (Template("{x}", "{y}"), {"x": HALF, "y": "b"}, "column 'x'"),
        (Template("{x}", "{y}"), {"x": "a", "y": HALF}, "column 'y'"),
        (Template("{x}", "{y}"), {"x": ["a", {"b": HALF}], "y": "b"}, "column 'x'[1]['b']"),
        (Template("{x}", "{y}"), {"x": {HALF: 1}, "y": "b"}, "column 'x'"),
        (Template("{x}", "{y}"), {"x": "a", "y": "b", "unread": HALF}, "column 'unread'"),
        (Template("{x}", "{y}"), {"x": "\ufdd0", "y": "b"}, "column 'x'"),
        (Written(lambda r, _: r["x"], lambda *_: "b"), {"x": HALF}, "column 'x'"),
        (Chat(), chat(HALF), "column 'messages'[0]['content']"),
        (Chat(), chat("\ufdd0"), "message 1['content']"),
    ],
)
def test_rows_name_the_column(tokenizer, form, record, where):
    encoder = make(tokenizer("gemma"), form)
    for encode in (encoder, encoder.prompt):
        if where == "column 'y'" and encode != encoder:
            continue
        with pytest.raises(RowError) as found:
            encode(record, PLACE)
        assert str(found.value).startswith(f"{PLACE}: {where} contains ")


def test_a_value_nested_without_end_is_a_bad_row(tokenizer):
    nested = []
    for _ in range(100_000):
        nested = [nested]
    check_texts(nested, "it")
    with pytest.raises(RowError, match=r"its values are nested too deep"):
        make(tokenizer("gemma"), Template("{x}", "b"))({"x": nested}, PLACE)


def test_keys_of_a_message_are_quoted_too(tokenizer):
    ours = tokenizer("llama")
    quoted = ours.quote({"<|eot_id|>": {"a": 1}})
    text = json.dumps(quoted, ensure_ascii=False)
    assert ours.id("<|eot_id|>") not in ours.encode(text, special=True)


def test_an_empty_special_token_marks_nothing():
    message = {"role": "user", "content": "a<eos>"}
    markup = Markup({"": Special(87, ""), "<eos>": Special(1, "<eos>")})
    plain = Markup({"<eos>": Special(1, "<eos>")})
    assert markup.quote(message) == plain.quote(message)
    assert markup.quote(message)["role"] == "user"
