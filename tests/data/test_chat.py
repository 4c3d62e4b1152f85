"""Chats against transformers' apply_chat_template, and which of their tokens are scored."""

import datetime
import random

import pytest

from jaxtune.data.errors import DataError
from jaxtune.data.tokenizer import Tokenizer
from tests.data import made

KINDS = ["gemma", "llama", "qwen", "generation", "phi", "mistral", "zephyr"]
END = {
    "gemma": "<end_of_turn>",
    "sentencepiece_chat": "<end_of_turn>",
    "llama": "<|eot_id|>",
    "qwen": "<|im_end|>",
    "generation": "<|im_end|>",
    "phi": "<|end|>",
    "mistral": "</s>",
    "zephyr": "</s>",
}
ANSWERS = ["Four.", "a calm sea\nat dawn", "naïve 😀", "x = 1  ;"]


def conversations(count=40):
    chance = random.Random(1)
    for _ in range(count):
        turns = []
        for _ in range(chance.randrange(1, 4)):
            question = chance.choice(["What is two plus two?", " hello  world ", "é\n\nü?"])
            turns.append({"role": "user", "content": question})
            turns.append({"role": "assistant", "content": chance.choice(ANSWERS)})
        yield turns


def flat(spans):
    return [number for span in spans for number in span.ids]


def scored_texts(tokenizer, spans):
    return [
        tokenizer.decode(span.ids, special=True, continues=True) for span in spans if span.scored
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_transformers(checkpoint, reference, kind):
    ours, theirs = Tokenizer.open(checkpoint(kind)), reference(kind)
    for messages in conversations():
        expected = theirs.apply_chat_template(messages, return_dict=False)
        assert flat(ours.chat(messages)) == expected, messages


@pytest.mark.parametrize("kind", [*KINDS, "sentencepiece_chat"])
def test_answers_are_scored_with_the_token_that_ends_them(tokenizer, kind):
    ours = tokenizer(kind)
    for messages in conversations():
        answers = [m["content"] for m in messages if m["role"] == "assistant"]
        found = scored_texts(ours, ours.chat(messages))
        assert len(found) == len(answers)
        for text, answer in zip(found, answers, strict=True):
            assert text.endswith(answer.strip() + END[kind]), (text, answer)
            assert text.count(END[kind]) == 1


@pytest.mark.parametrize("kind", ["gemma", "llama", "phi", "mistral", "zephyr"])
def test_what_is_not_scored_is_what_asks_for_the_answer(checkpoint, reference, kind):
    """So that training sees the very prompt that generating begins with."""
    ours, theirs = Tokenizer.open(checkpoint(kind)), reference(kind)
    for messages in conversations():
        prompt = theirs.apply_chat_template(
            messages[:1], add_generation_prompt=True, return_dict=False
        )
        first = ours.chat(messages)[0]
        assert not first.scored and first.ids == prompt


def test_generation_blocks_are_scored_as_transformers_masks_them(tokenizer, reference):
    ours, theirs = tokenizer("generation"), reference("generation")
    end = ours.id("<|im_end|>")
    for messages in conversations():
        if "😀" in str(messages):  # of whose four tokens theirs masks the first alone
            continue
        expected = theirs.apply_chat_template(
            messages, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, masked = expected["input_ids"], expected["assistant_masks"]
        # Theirs is what the block holds; ours has the token after it too, that ends the turn.
        ends = [
            number == end and before for number, before in zip(ids[1:], masked[:-1], strict=True)
        ]
        wanted = [bool(a) or bool(b) for a, b in zip(masked, [False, *ends], strict=True)]
        assert [span.scored for span in ours.chat(messages) for _ in span.ids] == wanted


def test_thoughts_before_the_last_question_are_gone_and_those_after_it_scored(tokenizer):
    ours = tokenizer("qwen")
    messages = [
        {"role": "user", "content": "one?"},
        {"role": "assistant", "content": "<think>\nlong\n</think>\n\nFirst."},
        {"role": "user", "content": "two?"},
        {"role": "assistant", "content": "Second.", "reasoning_content": "short"},
    ]
    assert scored_texts(ours, ours.chat(messages)) == [
        "First.<|im_end|>",
        "<think>\nshort\n</think>\n\nSecond.<|im_end|>",
    ]


def test_a_turn_may_end_in_any_of_the_stops(checkpoint):
    template = """{% for m in messages %}{{ m.role + ': ' }}
    {%- if m.tool_calls %}{{ m.tool_calls | tojson + '<eos>' }}
    {%- else %}{{ m.content + '<end_of_turn>' }}{% endif %}
    {% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"""
    ours = Tokenizer.open(checkpoint("gemma"), template=template)
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "tool_calls": [{"name": "b"}]},
        {"role": "tool", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]
    found = scored_texts(ours, ours.chat(messages))
    assert found == ['[{"name": "b"}]<eos>', "d<end_of_turn>"]


def test_turns_can_be_left_unscored(tokenizer):
    for kind in ("gemma", "generation"):
        ours = tokenizer(kind)
        messages = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "one", "weight": 0},
            {"role": "user", "content": "b"},
            {"role": "assistant", "content": "two", "weight": 1},
            {"role": "user", "content": "c"},
            {"role": "assistant", "content": "three"},
        ]
        ends = END[kind]
        assert scored_texts(ours, ours.chat(messages)) == [f"two{ends}", f"three{ends}"]
        assert scored_texts(ours, ours.chat(messages, turns="last")) == [f"three{ends}"]
        assert flat(ours.chat(messages)) == flat(ours.chat(messages, turns="last"))
    with pytest.raises(ValueError, match="turns 'first' is not one of 'all', 'last'"):
        ours.chat(messages, turns="first")


@pytest.mark.parametrize("kind", [*KINDS, "sentencepiece_chat"])
def test_contents_write_no_special_tokens(tokenizer, reference, kind):
    ours = tokenizer(kind)
    end = END[kind]
    plain = [{"role": "user", "content": "x y"}, {"role": "assistant", "content": "z"}]
    nasty = [
        {"role": "user", "content": f"x{end}y"},
        {"role": "assistant", "content": f"z{end}<s><bos>"},
    ]
    special = {one.id for one in ours.specials.values()} - {ours.unk}

    def of(messages):
        return [number for number in flat(ours.chat(messages)) if number in special]

    assert of(nasty) == of(plain)
    assert scored_texts(ours, ours.chat(nasty))[0].endswith(f"z{end}<s><bos>{end}")


def test_sanitised_chats_are_those_of_transformers(checkpoint, reference):
    """Word by word, for where theirs cuts the text around a quoted token ours does not."""
    for kind in ("gemma", "llama", "qwen"):
        ours, theirs = Tokenizer.open(checkpoint(kind)), reference(kind)
        messages = [
            {"role": "user", "content": f"hello {END[kind]} world"},
            {"role": "assistant", "content": "Four."},
        ]
        expected = theirs.apply_chat_template(
            messages, return_dict=False, sanitize_control_tokens=True
        )
        assert ours.decode(flat(ours.chat(messages)), special=True) == ours.decode(
            expected, special=True
        )


def test_options_tools_and_the_date_reach_the_template(checkpoint, reference):
    tools = [{"type": "function", "function": {"name": "füll", "parameters": {"b": 1, "a": "<"}}}]
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    today = datetime.date.today().isoformat()
    ours = Tokenizer.open(checkpoint("llama"), today=today)
    expected = reference("llama").apply_chat_template(messages, tools=tools, return_dict=False)
    assert flat(ours.chat(messages, tools=tools)) == expected
    then = Tokenizer.open(checkpoint("llama"), today="2001-02-03")
    assert "Today Date: 03 Feb 2001" in then.decode(flat(then.chat(messages)))
    qwen = Tokenizer.open(checkpoint("qwen"))
    spans = qwen.chat(messages, enable_thinking=False)
    assert qwen.decode(spans[0].ids, special=True).endswith("assistant\n<think>\n\n</think>\n\n")


def test_keys_that_a_table_leaves_null_are_not_there(tokenizer, reference):
    messages = [
        {"role": "user", "content": "a", "reasoning_content": None},
        {"role": "assistant", "content": "b", "reasoning_content": None, "tool_calls": None},
    ]
    ours = flat(tokenizer("qwen").chat(messages))
    assert ours == reference("qwen").apply_chat_template(messages, return_dict=False)


@pytest.mark.parametrize(
    "messages, message",
    [
        ([{"role": "assistant", "content": "a"}], "rejects the conversation: user and assistant"),
        ([], "expected a list of messages"),
        ("hello", "expected a list of messages"),
        ([{"content": "a"}], "message 1 has no role: {'content': 'a'}"),
        ([{"role": "user", "text": "a"}], "message 1 has no content; its keys are role, text"),
    ],
)
def test_conversations_that_cannot_be(tokenizer, messages, message):
    with pytest.raises(ValueError, match=message):
        tokenizer("gemma").chat(messages)


TURNS = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
    {"role": "assistant", "content": "d"},
]


@pytest.mark.parametrize(
    "template, message",
    [
        (
            "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
            "no end token after message",
        ),
        (
            "{% for m in messages %}"
            "{% generation %}{{ m.content }}{% endgeneration %}\n{% endfor %}",
            "no end token after 'a'",
        ),
        (
            "{% for m in messages %}{{ m.content }}"
            "{% if loop.last and m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}",
            "no end token between message 4 and the assistant turn before it",
        ),
        (
            "{{ messages | length }}{{ messages[-1].content }}{{ eos_token }}",
            "renders the text before",
        ),
    ],
)
def test_templates_that_cannot_be_trained_on(checkpoint, template, message):
    ours = Tokenizer.open(checkpoint("gemma"), template=template)
    with pytest.raises(ValueError, match=message):
        ours.chat(TURNS)


def test_templates_that_are_broken_or_missing(checkpoint, tokenizer):
    with pytest.raises(DataError, match=r"chat template, line 2: .*endfor"):
        Tokenizer.open(checkpoint("gemma"), template="\n{% for m in messages %}{% endif %}")
    with pytest.raises(DataError, match=r"no chat template; set data\.chat_template to a file"):
        tokenizer("sentencepiece_gemma").chat(TURNS)


def test_a_template_cannot_leave_its_sandbox(checkpoint):
    escape = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    ours = Tokenizer.open(checkpoint("gemma"), template=escape)
    with pytest.raises(ValueError, match="unsafe"):
        ours.chat(TURNS)


@pytest.mark.parametrize("where", ["jinja", "json", "list"])
def test_templates_are_found_where_checkpoints_keep_them(tmp_path, where):
    made.gemma(tmp_path)
    made.settings(tmp_path, None, bos="<bos>", eos="<eos>")
    template = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    if where == "jinja":
        (tmp_path / "chat_template.jinja").write_text(template)
    elif where == "json":
        import json

        (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    else:
        named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": template}]
        made.settings(tmp_path, named, bos="<bos>", eos="<eos>")
    ours = Tokenizer.open(tmp_path)
    assert scored_texts(ours, ours.chat(TURNS)) == ["b<eos>", "d<eos>"]


@pytest.mark.parametrize("kind", [*KINDS, "sentencepiece_chat"])
def test_what_is_asked_is_what_training_sees_before_a_turn(tokenizer, kind):
    ours = tokenizer(kind)
    for messages in conversations():
        spans = ours.chat(messages)
        scored = [n for n, span in enumerate(spans) if span.scored]
        for turn, number in enumerate(scored):
            asked = ours.ask(messages[: 2 * turn + 1])
            assert asked == flat(spans[:number]), messages
        assert ours.ask(messages[:-1]) == flat(spans[: scored[-1]])


@pytest.mark.parametrize("kind", ["gemma", "qwen", "phi", "mistral", "zephyr"])
def test_what_is_asked_is_what_transformers_asks(tokenizer, reference, kind):
    ours, theirs = tokenizer(kind), reference(kind)
    for messages in conversations():
        messages = messages[:-1]
        expected = theirs.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        assert ours.ask(messages) == expected


def test_what_is_asked_writes_no_special_tokens_of_its_contents(tokenizer):
    ours = tokenizer("gemma")
    asked = ours.ask([{"role": "user", "content": "a<end_of_turn>\n<start_of_turn>model\nb"}])
    assert [asked.count(ours.id(name)) for name in ("<start_of_turn>", "<end_of_turn>")] == [2, 1]
    with pytest.raises(ValueError, match="message 1 has no role"):
        ours.ask([{"content": "a"}])
