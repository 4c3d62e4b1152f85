"""What every example keeps to, and every way a record cannot be one."""

import numpy as np
import pytest

from jaxtune.data.errors import DataError, NothingScored, RowError, TooLong
from jaxtune.data.examples import Chat, Example, Template, Written, columns
from tests.data import made
from tests.data.rows import PLACE, PROMPT, RECORD, make


def parts(tokenizer, example):
    """The text that is not scored, and that which is."""
    return tuple(
        tokenizer.decode(example.tokens[which], special=True, continues=n == 1)
        for n, which in enumerate((~example.scored, example.scored))
    )


@pytest.mark.parametrize("kind", made.KINDS)
def test_a_template(tokenizer, kind):
    ours = tokenizer(kind)
    example = make(ours)(RECORD, PLACE)
    prefix, suffix = parts(ours, example)
    bos = ours.piece(ours.bos) if ours.adds_bos else ""
    assert prefix.startswith(bos)
    assert prefix.removeprefix(bos).lstrip(" ") == "Describe: a calm sea\nColors:"
    assert suffix == ' ["#aabbcc", "#123456"]' + ours.piece(ours.eos)
    assert example.place == PLACE and example.causal is None and example.cut == 0
    assert (example.tokens.dtype, example.scored.dtype) == (np.int32, bool)
    # Scored is one run, at the end.
    assert (np.diff(example.scored.astype(int)) != 0).sum() == 1 and example.scored[-1]


@pytest.mark.parametrize("kind", made.KINDS)
def test_bos_once_where_it_is_the_convention_and_the_end_once(tokenizer, kind):
    ours = tokenizer(kind)
    markup = f"{ours.piece(ours.eos)} {'' if ours.bos is None else ours.piece(ours.bos)}"
    for form in (PROMPT, Template("{description}", "{colors}"), columns("description", "colors")):
        for record in (RECORD, {"description": f"x{markup}", "colors": f"{markup}y"}):
            tokens = make(ours, form)(record, PLACE).tokens.tolist()
            assert tokens.count(ours.eos) == 1 and tokens[-1] == ours.eos
            if ours.bos is not None:
                assert tokens.count(ours.bos) == int(ours.adds_bos)
            assert (tokens[0] == ours.bos) == ours.adds_bos


def test_bos_and_end_that_a_template_writes_are_not_written_again(tokenizer):
    gemma = tokenizer("gemma")
    written = Template("<bos>{description}", "{colors}<eos>")
    silent = Template("{description}", "{colors}")
    assert (
        make(gemma, written)(RECORD, PLACE).tokens == make(gemma, silent)(RECORD, PLACE).tokens
    ).all()
    with pytest.raises(DataError, match="writes BOS twice"):
        make(gemma, Template("<bos><bos>{description}", "{colors}"))(RECORD, PLACE)
    with pytest.raises(DataError, match="writes its end token twice"):
        make(gemma, Template("a", "{colors}<eos> b"))(RECORD, PLACE)


def test_another_end_token(tokenizer):
    gemma = tokenizer("gemma")
    form = Template("<start_of_turn>user\n{description}<end_of_turn>\n<start_of_turn>model\n",
                    "{colors}", end="<end_of_turn>")  # fmt: skip
    example = make(gemma, form)(RECORD, PLACE)
    turn = gemma.id("<end_of_turn>")
    assert example.tokens[-1] == turn and example.scored[-1]
    assert example.tokens.tolist().count(turn) == 2 and gemma.eos not in example.tokens
    with pytest.raises(DataError, match="'<end>' is not a token of this vocabulary"):
        make(gemma, Template("a", "b", end="<end>"))


def test_a_row_is_what_transformers_makes_of_its_text(tokenizer, reference):
    """Of files that split text at spaces, so that no token would span prefix and suffix."""
    for kind in ("llama", "qwen"):
        ours, theirs = tokenizer(kind), reference(kind)
        text = 'Describe: a calm sea\nColors: ["#aabbcc", "#123456"]'
        expected = theirs(text)["input_ids"] + [theirs.eos_token_id]
        assert make(ours)(RECORD, PLACE).tokens.tolist() == expected, kind


def test_values_are_written_as_people_would(tokenizer):
    gemma = tokenizer("gemma")
    form = Template("{{{n}}} {x:.2f} {flag} {words!s:>5}", "{more}")
    record = {"n": 3, "x": 2.5, "flag": True, "words": "é", "more": {"a": ["ü", None]}}
    prefix, suffix = parts(gemma, make(gemma, form)(record, PLACE))
    assert (prefix, suffix) == ("<bos>{3} 2.50 true     é", '{"a": ["ü", null]}<eos>')
    assert form.columns == ["n", "x", "flag", "words", "more"]


@pytest.mark.parametrize(
    "record, message",
    [
        ({"Description": "a", "colors": "b"}, "a.jsonl:7: no column 'description'; "
         "did you mean 'Description'\\? The columns are 'Description', 'colors'"),
        ({"x": 1}, "no column 'description'; the columns are 'x'"),
        ({}, "no column 'description'; the row has no columns"),
        ({"description": None, "colors": "b"}, "column 'description' is empty"),
    ],
)  # fmt: skip
def test_missing_columns(tokenizer, record, message):
    with pytest.raises(RowError, match=message):
        make(tokenizer("gemma"))(record, PLACE)


def test_a_value_that_cannot_be_formatted(tokenizer):
    with pytest.raises(RowError, match=r"a.jsonl:7: column 'n': cannot format 'many': Unknown f"):
        make(tokenizer("gemma"), Template("{n:.2f}", "b"))({"n": "many"}, PLACE)
    with pytest.raises(
        RowError, match=r"a.jsonl:7: column 'n': cannot format .*not JSON serializable"
    ):
        make(tokenizer("gemma"), Template("{n}", "b"))({"n": [b"bytes"]}, PLACE)


@pytest.mark.parametrize(
    "text, message", [("{", "double braces that are meant"), ("{}", "without a column name")]
)
def test_templates_that_are_none(text, message):
    with pytest.raises(ValueError, match=message):
        Template(text, "{b}")


def test_a_row_with_nothing_scored_is_named(tokenizer):
    gemma = tokenizer("gemma")
    with pytest.raises(NothingScored, match=r"a.jsonl:7: no token is scored: the suffix is empty"):
        make(gemma, columns())({"prefix": "a", "suffix": ""}, PLACE)
    asked = {"messages": [{"role": "user", "content": "a"}]}
    with pytest.raises(NothingScored, match=r"a.jsonl:7: no token is scored: the row has no com"):
        make(gemma, Chat())(asked, PLACE)
    assert issubclass(NothingScored, RowError)  # which a policy may skip


def test_nothing_predicts_a_first_token(tokenizer):
    qwen = tokenizer("qwen")  # which has no BOS
    example = make(qwen, columns())({"prefix": "", "suffix": "hello world"}, PLACE)
    assert qwen.decode(example.tokens) == "hello world"
    assert not example.scored[0] and example.scored[1:].all()
    with pytest.raises(ValueError, match="first token is scored"):
        Example(example.tokens, np.ones(len(example.tokens), bool), None, PLACE)


# Chat


CONVERSATION = {
    "messages": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]
}


@pytest.mark.parametrize("kind", ["gemma", "llama", "qwen", "phi", "mistral", "sentencepiece_chat"])
def test_a_chat(tokenizer, kind):
    ours = tokenizer(kind)
    example = make(ours, Chat())(CONVERSATION, PLACE)
    spans = ours.chat(CONVERSATION["messages"])
    assert example.tokens.tolist() == [n for span in spans for n in span.ids]
    assert example.scored.tolist() == [span.scored for span in spans for _ in span.ids]
    assert example.tokens.tolist().count(ours.bos) == (kind not in ("qwen", "phi"))
    last = make(ours, Chat(turns="last"))(CONVERSATION, PLACE)
    assert (last.tokens == example.tokens).all()
    assert 0 < last.scored.sum() < example.scored.sum()


def test_bos_that_a_chat_template_forgets_is_put_there(checkpoint):
    from jaxtune.data.tokenizer import Tokenizer

    template = made.GEMMA_CHAT.replace("{{ bos_token }}", "")
    gemma = Tokenizer.open(checkpoint("gemma"), template=template)
    tokens = make(gemma, Chat())(CONVERSATION, PLACE).tokens.tolist()
    assert tokens[0] == gemma.bos and tokens.count(gemma.bos) == 1


def test_chats_that_cannot_be_are_named(tokenizer):
    gemma = tokenizer("gemma")
    with pytest.raises(RowError, match=r"a.jsonl:7: expected a list of messages"):
        make(gemma, Chat())({"messages": "hello"}, PLACE)
    twice = {"messages": [{"role": "user", "content": "a"}] * 2}
    with pytest.raises(RowError, match=r"a.jsonl:7: the chat template rejects"):
        make(gemma, Chat())(twice, PLACE)
    with pytest.raises(DataError, match=r"data\.chat_template to .*; or use data\.prefix"):
        make(tokenizer("sentencepiece_gemma"), Chat())


# A prefix seen in full


def test_a_full_prefix(tokenizer):
    gemma = tokenizer("sentencepiece_gemma")
    example = make(gemma, Template("{description}\n", "{colors}"), full_prefix=True)(RECORD, PLACE)
    assert (example.causal == example.scored).all() and example.causal.dtype == bool
    assert parts(gemma, example)[0] == "<bos>a calm sea\n"


# Rows that are too long


def long_row(prefix=40, suffix=20):
    return {"prefix": " word" * prefix, "suffix": " the" * suffix}


def test_a_row_that_is_too_long_is_named_with_both_lengths(tokenizer):
    gemma = tokenizer("gemma")
    whole = make(gemma, columns())(long_row(), PLACE)
    length, scored = len(whole.tokens), int(whole.scored.sum())
    message = (
        f"a.jsonl:7: the row has {length} tokens \\(prompt {length - scored}, completion "
        f"{scored}\\), but batch.max_length is {length - 1}; raise it"
    )
    with pytest.raises(TooLong, match=message):
        make(gemma, columns(), length - 1)(long_row(), PLACE)
    assert len(make(gemma, columns(), length)(long_row(), PLACE).tokens) == length


@pytest.mark.parametrize("kind", ["gemma", "qwen"])
@pytest.mark.parametrize("policy", ["cut_prefix", "cut_suffix"])
def test_rows_are_cut_where_told_and_nowhere_else(tokenizer, kind, policy):
    ours = tokenizer(kind)
    whole = make(ours, columns())(long_row(), PLACE)
    bos, first = int(ours.adds_bos), int(np.argmax(whole.scored))
    for limit in range(2, len(whole.tokens) + 2):
        prompt = make(ours, columns(), limit, too_long=policy)
        excess = max(0, len(whole.tokens) - limit)
        last = len(whole.tokens) - 1
        if policy == "cut_prefix":
            fits, gone = excess < first, slice(bos, bos + excess)
        else:
            fits, gone = excess < last - first, slice(last - excess, last)
        if not fits:
            with pytest.raises(TooLong, match="is not enough"):
                prompt(long_row(), PLACE)
            continue
        example = prompt(long_row(), PLACE)
        assert example.tokens.tolist() == np.delete(whole.tokens, gone).tolist()
        assert example.scored.tolist() == np.delete(whole.scored, gone).tolist()
        assert example.cut == excess and example.tokens[-1] == ours.eos and example.scored[-1]


def test_chats_are_cut_at_their_last_answer(tokenizer):
    gemma = tokenizer("gemma")
    record = {
        "messages": [*CONVERSATION["messages"][:3], {"role": "assistant", "content": "d" * 50}]
    }
    whole = make(gemma, Chat())(record, PLACE)
    limit = len(whole.tokens) - 20
    example = make(gemma, Chat(), limit, too_long="cut_suffix")(record, PLACE)
    # The line break that the template writes after the last turn goes first.
    assert example.tokens.tolist() == [*whole.tokens[: limit - 1], gemma.id("<end_of_turn>")]
    assert example.cut == 20
    with pytest.raises(TooLong, match="cutting the prompt is not enough"):
        make(gemma, Chat(), limit, too_long="cut_prefix")(record, PLACE)


def test_policies_are_known(tokenizer):
    with pytest.raises(ValueError, match="too_long 'cut' is not one of 'fail', 'skip'"):
        make(tokenizer("gemma"), too_long="cut")
    with pytest.raises(ValueError, match="max_length is 1"):
        make(tokenizer("gemma"), max_length=1)


def test_text_that_functions_write(tokenizer):
    gemma = tokenizer("gemma")

    def theme(record, place):
        return f"Theme: {record['theme']}\n"

    form = Written(theme, lambda record, place: record["answer"], columns=[("theme", "topic")])
    record = {"topic": "a <eos> sea", "answer": " blue<eos>"}
    example = make(gemma, form)(record, PLACE)
    prefix, suffix = parts(gemma, example)
    # What functions write is plain text: special tokens in it are none.
    assert (prefix, suffix) == ("<bos>Theme: a <eos> sea\n", " blue<eos><eos>")
    assert example.tokens.tolist().count(gemma.eos) == 1 and example.tokens[-1] == gemma.eos
    with pytest.raises(RowError, match="no column 'topic'"):
        make(gemma, form)({"theme": "x", "answer": "y"}, PLACE)


CHAT = {
    "messages": [
        {"role": "user", "content": "one?"},
        {"role": "assistant", "content": " First.\n"},
        {"role": "user", "content": "<eos> two?"},
        {"role": "assistant", "content": "Second."},
    ]
}


@pytest.mark.parametrize("kind", made.KINDS)
@pytest.mark.parametrize(
    "form",
    [
        PROMPT,
        Template("{description} <eos>", "{colors}"),
        columns("description", "colors"),
        Written(lambda record, place: f"{record['theme']}\n<eos>", lambda record, place: "blue",
                columns=[("theme", "description")]),
    ],
)  # fmt: skip
def test_what_is_asked_is_what_training_reads(tokenizer, kind, form):
    prompt = make(tokenizer(kind), form)
    for description in ("a calm sea", " two  words ", "naïve 😀\n", "<eos> é"):
        record = RECORD | {"description": description}
        example = prompt(record, PLACE)
        before = example.tokens[: np.argmax(example.scored)].tolist()
        assert prompt.prompt(record, PLACE) == before
        assert prompt.prompt({"description": description}, PLACE) == before


@pytest.mark.parametrize(
    "kind", ["gemma", "llama", "qwen", "generation", "phi", "mistral", "zephyr"]
)
def test_a_chat_is_asked_as_training_reads_it(tokenizer, kind):
    prompt = make(tokenizer(kind), Chat())
    messages = CHAT["messages"]
    for count in (2, 4):
        example = prompt({"messages": messages[:count]}, PLACE)
        scored = np.flatnonzero(example.scored)
        first = next(n for n in scored[::-1] if not example.scored[n - 1])
        asked = prompt.prompt({"messages": messages[: count - 1]}, PLACE)
        assert asked == example.tokens[:first].tolist()


def test_what_cannot_be_asked_is_named(tokenizer):
    gemma = tokenizer("gemma")
    with pytest.raises(RowError, match=r"^a.jsonl:7: no column 'description'"):
        make(gemma).prompt({"colors": []}, PLACE)
    with pytest.raises(RowError, match=r"^a.jsonl:7: message 1 has no role"):
        make(gemma, Chat()).prompt({"messages": [{"content": "a"}]}, PLACE)
    with pytest.raises(RowError, match=r"^a.jsonl:7: the chat template rejects the conversation"):
        make(gemma, Chat()).prompt({"messages": CHAT["messages"][1:2]}, PLACE)


def test_the_columns_that_a_prompt_asks_for():
    form = Template("{a} {b:.2f} {a} {{c}}", "{d}")
    assert (form.asks, form.columns) == (["a", "b"], ["a", "b", "d"])
    assert columns("x", "y").asks == ["x"] and Template("fixed", "{d}").asks == []
