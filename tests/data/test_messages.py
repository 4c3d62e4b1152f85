"""Messages of ShareGPT are those of chat templates."""

import pytest

from jaxtune.data.errors import RowError
from jaxtune.data.examples import Chat
from jaxtune.data.messages import foreign, standard
from tests.data.rows import PLACE, make

TURNS = [
    {"from": "system", "value": "You are helpful."},
    {"from": "human", "value": "What is two plus two?"},
    {"from": "gpt", "value": "Four.", "weight": 0},
    {"from": "Human", "value": "user"},
    {"from": "gpt", "value": "model", "role": None},
]
MESSAGES = [
    {"role": "system", "content": "You are helpful."},
    {"role": "user", "content": "What is two plus two?"},
    {"role": "assistant", "content": "Four.", "weight": 0},
    {"role": "user", "content": "user"},
    {"role": "assistant", "content": "model"},
]


def test_from_and_value_are_role_and_content():
    assert standard(TURNS) == MESSAGES == standard(MESSAGES)
    assert all(map(foreign, TURNS)) and not any(map(foreign, MESSAGES))
    assert standard(["text", 7, {"a": 1}]) == ["text", 7, {"a": 1}]  # refused later


def test_examples_are_the_same(tokenizer):
    encoder = make(tokenizer("gemma"), Chat("conversations"))
    found, plain = (encoder({"conversations": each}, PLACE) for each in (TURNS, MESSAGES))
    assert found.tokens.tolist() == plain.tokens.tolist()
    assert found.scored.tolist() == plain.scored.tolist() and found.scored.any()
    asked = {"conversations": TURNS[:2]}
    assert encoder.prompt(asked, PLACE) == encoder.prompt({"conversations": MESSAGES[:2]}, PLACE)


@pytest.mark.parametrize(
    "message, problem",
    [
        ({"from": "someone", "value": "a"}, "message 2 is from 'someone'; expected one of human,"),
        ({"from": 7, "value": "a"}, "message 2 is from '7'; expected one of"),
        ({"from": "gpt"}, "message 2 has no content"),
        ({"from": "gpt", "value": None}, "message 2 has no content"),
    ],
)
def test_messages_that_cannot_be_read(tokenizer, message, problem):
    encoder = make(tokenizer("gemma"), Chat("conversations"))
    with pytest.raises(RowError, match=f"{PLACE}: {problem}"):
        encoder({"conversations": [TURNS[1], message]}, PLACE)
