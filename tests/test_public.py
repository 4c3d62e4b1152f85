"""The public functions: calls with the wrong arguments say what was expected."""

import jax
import numpy as np
import pytest

import jaxtune
from jaxtune.display.errors import UserError
from tests import tiny

FORM = jaxtune.Template("{prefix}", "{suffix}")


@pytest.fixture(scope="module")
def given(base):
    """What calls take: a model, variables with adapters, an optimiser, a state and a batch."""
    model, variables = jaxtune.load(base)
    variables = jaxtune.add_lora(variables, rank=2, alpha=4, key=jax.random.key(0))
    optimizer = jaxtune.optimizer("adamw", lr=1e-3)
    state = jaxtune.TrainState.create(variables, optimizer=optimizer)
    encode = jaxtune.RowEncoder(model.origin.tokenizer, FORM, max_length=64)
    examples = [encode(row, f"row {n}") for n, row in enumerate(tiny.records(4))]
    return model, variables, optimizer, state, examples


CALLS = {
    "text as token ids": (
        lambda m, v, o, s, e: jaxtune.generate(m, v, ["hello"]),
        r"prompt 0 is text, 'hello': .* jaxtune\.answers\(model, variables, texts\)",
    ),
    "token ids as text": (
        lambda m, v, o, s, e: jaxtune.answers(m, v, [[1, 2]]),
        r"prompt 0 is \[1, 2\]; expected a text, .* jaxtune\.generate takes token ids",
    ),
    "one text": (
        lambda m, v, o, s, e: jaxtune.answers(m, v, "hello"),
        "prompts is of type str; expected a list of texts or conversations",
    ),
    "a misspelt setting": (
        lambda m, v, o, s, e: jaxtune.answers(m, v, ["a"], temprature=1.0),
        "found the argument 'temprature'; expected some of max_new_tokens, temperature",
    ),
    "swapped": (
        lambda m, v, o, s, e: jaxtune.generate(v, m, [[1]]),
        r"model is of type dict; expected the first of what jaxtune\.load returns",
    ),
    "a model to adapt": (
        lambda m, v, o, s, e: jaxtune.add_lora(m, key=jax.random.key(0)),
        r"variables is of type Decoder; expected the second of what jaxtune\.load returns",
    ),
    "a seed as a key": (
        lambda m, v, o, s, e: jaxtune.add_lora(v, key=0),
        r"key is of type int; expected a key such as jax\.random\.key\(0\)",
    ),
    "the name of an optimiser": (
        lambda m, v, o, s, e: jaxtune.TrainState.create(v, optimizer="adamw"),
        r"optimizer is of type str; expected what jaxtune\.optimizer",
    ),
    "no state": (
        lambda m, v, o, s, e: jaxtune.train_step(m, o, v, jaxtune.collate(e)),
        r"state is of type dict; expected a jaxtune\.TrainState",
    ),
    "no batch": (
        lambda m, v, o, s, e: jaxtune.train_step(m, o, s, e),
        r"batch is of type list; expected a jaxtune\.Batch, .* jaxtune\.collate\(examples\)",
    ),
    "a state to evaluate": (
        lambda m, v, o, s, e: jaxtune.eval_step(m, s, jaxtune.collate(e)),
        r"variables is of type TrainState; .*; pass its \.variables",
    ),
    "another tree": (
        lambda m, v, o, s, e: jaxtune.log_probs(m, v["params"], jaxtune.collate(e)),
        "variables is a dictionary with the keys embed, .*; expected",
    ),
    "no population": (
        lambda m, v, o, s, e: jaxtune.population_step(m, o, s, jaxtune.collate(e)),
        r"population is of type TrainState; expected what jaxtune\.Population\.of\(states\)",
    ),
    "no members": (
        lambda m, v, o, s, e: jaxtune.Population.of([]),
        r"states: found none; expected one jaxtune\.TrainState or more",
    ),
    "no examples": (
        lambda m, v, o, s, e: jaxtune.collate([3]),
        r"line 0 is of type int; expected an Example, .*encode\(row, place\)",
    ),
    "too many lines": (
        lambda m, v, o, s, e: jaxtune.collate(e, shape=(2, 64, 32)),
        "found 4 lines for a batch of 2",
    ),
    "too few scored positions": (
        lambda m, v, o, s, e: jaxtune.collate(e, shape=(4, 64, 2)),
        "row 0: [0-9]+ scored tokens do not fit on a line of 2",
    ),
    "no rows": (
        lambda m, v, o, s, e: jaxtune.evaluate(m, v, [], FORM),
        r"rows is \[\]; expected a list of one dictionary or more",
    ),
    "texts as rows": (
        lambda m, v, o, s, e: jaxtune.evaluate(m, v, ["a"], FORM),
        "row 0: it is of type str; expected a dictionary",
    ),
    "no form": (
        lambda m, v, o, s, e: jaxtune.evaluate(m, v, tiny.records(1), 3),
        r"form is of type int; expected a jaxtune\.Template, a jaxtune\.Chat, or the name",
    ),
    "no config": (
        lambda m, v, o, s, e: jaxtune.fit(3, "nowhere"),
        r"config is of type int; expected what load_config\(path\) returns",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_call_says_what_was_expected(name, given):
    call, message = CALLS[name]
    with pytest.raises(UserError, match=message):
        call(*given)


@pytest.mark.slow
def test_answers_are_the_texts_of_what_is_generated(given):
    model, variables, *_ = given
    tokenizer, texts = model.origin.tokenizer, ["sea and sand:", "moss:"]
    prompts = [[tokenizer.bos, *tokenizer.encode(text)] for text in texts]
    ids = jaxtune.generate(model, variables, prompts, max_new_tokens=6)
    found = jaxtune.answers(model, variables, texts, 6)
    stops = set(tokenizer.stops)
    for answer, tokens in zip(found, ids, strict=True):
        assert answer.text == tokenizer.decode(
            [each for each in tokens if each not in stops], continues=True
        )
        assert answer.tokens == len(tokens)


@pytest.mark.slow
def test_a_conversation_is_asked_with_the_chat_template(given):
    model, variables, *_ = given
    messages = [{"role": "user", "content": "sea"}]
    (answer,) = jaxtune.answers(model, variables, [messages], 4)
    ids = jaxtune.generate(model, variables, [model.origin.tokenizer.ask(messages)], 4)
    assert answer.tokens == len(ids[0])


@pytest.mark.slow
def test_an_evaluation_in_memory(given):
    model, variables, _, _, examples = given
    rows = tiny.records(4)
    found = jaxtune.evaluate(model, variables, rows, FORM, max_new_tokens=4, batch=2)
    total, weight = jaxtune.eval_step(model, variables, jaxtune.collate(examples))
    assert found.loss == pytest.approx(float(total / weight), rel=1e-6)
    assert [each.references for each in found.predictions] == [
        (row["suffix"].strip(),) for row in rows
    ]
    assert found.figures["exact"].value == 0
    alone = jaxtune.evaluate(model, variables, rows, FORM, metrics=[])
    assert alone.loss == pytest.approx(found.loss, rel=1e-6) and not alone.predictions


def test_a_batch_without_a_shape_has_little_padding(given):
    *_, examples = given
    batch = jaxtune.collate(examples)
    assert batch.tokens.shape == (4, max(len(each.tokens) for each in examples))
    assert batch.where.shape == (4, max(int(each.scored.sum()) for each in examples))
    wide = jaxtune.collate(examples, shape=(4, 64, 32))
    assert np.array_equal(wide.tokens[:, : batch.tokens.shape[1]], batch.tokens)
    packed = jaxtune.collate([examples[:2], examples[2:]])
    assert packed.segments.max() == 1 and packed.weights.sum() == batch.weights.sum()
