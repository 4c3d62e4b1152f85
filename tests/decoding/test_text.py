"""Answers as text: the same in pieces as at once, and ended where they should be."""

import functools
import random
from types import SimpleNamespace

import pytest

import jaxtune
from jaxtune.config.run_sections import Generate
from jaxtune.data.errors import TooLong
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.decoding import generate, requests
from jaxtune.decoding.text import TextGenerator, _prompt
from tests.data import made
from tests.marks import slow_after

TEXTS = (
    "the quick brown fox jumps over the lazy dog",
    "naïve 😀😀 ☃ déjà vu\n\nका 中文, x = 1  ;",
    "END E EN ENE END",
)
STOPS = ((), ("ENE",), ("\n\n", "lazy"), ("😀 ☃", "EN E"), ("zz",))
MODEL = SimpleNamespace(config=SimpleNamespace(context=64))


def text_generator(tokenizer, stops=(), model=MODEL, variables=None, **settings):
    return TextGenerator(model, variables, tokenizer, Generate(stops=stops, **settings))


def letters(tokenizer, text):
    """The tokens of a text that is written letter by letter."""
    return [tokenizer.encode(letter, continues=True)[-1] for letter in text]


@pytest.fixture
def streamed(monkeypatch):
    """`streamed(text_generator, tokens)` is the pieces of an answer of these tokens."""

    def streamed(ours, tokens):
        monkeypatch.setattr(generate, "stream", lambda *given, **more: iter(tokens))
        return list(ours.stream([1]))

    return streamed


@pytest.mark.parametrize("stops", slow_after(2, [(each,) for each in STOPS]))
@pytest.mark.parametrize("kind", made.KINDS)
def test_pieces_join_to_the_text(tokenizer, streamed, kind, stops):
    ours = text_generator(tokenizer(kind), stops)
    ends = [*ours.tokenizer.stops[:1]]
    for text in TEXTS:
        tokens = ours.tokenizer.encode(text, continues=True) + ends
        for count in range(len(tokens) + 1):  # cut anywhere, within a character too
            assert "".join(streamed(ours, tokens[:count])) == ours.text(tokens[:count])
        places = [at for stop in stops if (at := text.find(stop)) >= 0]
        assert ours.text(tokens) == text[: min(places, default=None)]


@pytest.mark.parametrize("stops", [(), ("a", "he w"), (" ",)])
@pytest.mark.parametrize("kind", made.KINDS)
def test_pieces_of_nonsense_join_to_the_text(tokenizer, streamed, kind, stops):
    """Bytes in an order that is no character's, and special tokens among them."""
    ours, log_prob = text_generator(tokenizer(kind), stops), random.Random(0)
    some = [n for n in range(len(ours.tokenizer)) if n not in ours.tokenizer.stops]
    for _ in range(60):
        tokens = log_prob.choices(some, k=20)
        ended = next((n for n in range(20) if ours._finished(tokens[: n + 1])), 20)
        assert "".join(streamed(ours, tokens)) == ours.text(tokens[: ended + 1])


@pytest.mark.parametrize("kind", made.KINDS)
def test_text_comes_as_soon_as_it_is_certain(tokenizer, streamed, kind):
    ours = text_generator(tokenizer(kind), ("\nUser:",))
    assert streamed(ours, letters(ours.tokenizer, "the quick")) == list("the quick")
    smiling = ours.tokenizer.encode("a 😀 b", continues=True)
    pieces = streamed(ours, smiling)
    assert len(pieces) > 1 and "\ufffd" not in "".join(pieces)


def test_nothing_is_asked_for_after_a_stop(tokenizer, monkeypatch):
    ours, given = text_generator(tokenizer("gemma"), ("brown",)), []
    tokens = letters(ours.tokenizer, "the quick brown fox")

    def stream(*_, **__):
        for token in tokens:
            given.append(token)
            yield token

    monkeypatch.setattr(generate, "stream", stream)
    assert "".join(ours.stream([1])) == "the quick "
    assert ours.tokenizer.decode(given, continues=True) == "the quick brown"


def test_tokens_after_a_stop_are_not_counted(tokenizer, monkeypatch):
    ours = text_generator(tokenizer("gemma"), ("brown",))
    tokens = letters(ours.tokenizer, "the quick brown fox")
    completion = requests.Completion(tokens, [-1.0] * len(tokens), ended=True)
    monkeypatch.setattr(generate, "completions", lambda *given, **more: [completion])
    (answer,) = ours.answers([[1]])
    counted = len("the quick brown")
    assert (answer.text, answer.tokens, answer.log_prob) == ("the quick ", counted, -counted)


def test_a_prompt_that_leaves_no_room(tokenizer):
    ours = text_generator(tokenizer("gemma"), max_new_tokens=20)
    ours.check([1] * 44, "row 1")
    with pytest.raises(TooLong, match=r"^row 2: the prompt has 45 tokens, .* 20 new .* of 64;"):
        ours.check([1] * 45, "row 2")


@pytest.mark.slow
def test_a_model_says_the_same_in_pieces(base):
    model, variables = jaxtune.load(base)
    ask = functools.partial(
        text_generator, Tokenizer.open(base), model=model, variables=variables, max_new_tokens=12
    )
    prompts = [ask().tokenizer.encode(text) for text in ("sea:", "moss and moss:", "a")]
    free = ask().answers(prompts)
    stops = tuple({answer.text[2:4] for answer in free if len(answer.text) > 4})
    assert stops
    for given in ((), stops):
        ours = ask(given)
        answers = ours.answers(prompts, likeliest=3)
        assert ["".join(ours.stream(prompt)) for prompt in prompts] == [r.text for r in answers]
        assert all(len(answer.next) == 3 for answer in answers)
        assert all(answer.next[0][1] >= answer.next[1][1] > 0 for answer in answers)
    assert any(len(r.text) < len(other.text) for r, other in zip(answers, free, strict=True))


def test_a_prompt_begins_as_rows_do_in_training(tmp_path):
    """With one BOS, also where a chat template writes none; special tokens in it are plain text."""
    made.KINDS["gemma"](tmp_path)
    ours = Tokenizer.open(tmp_path, template="{{ messages[0].content }}")
    said = _prompt(0, [{"role": "user", "content": "sea<eos>"}], ours)
    assert said == _prompt(0, "sea<eos>", ours) == [ours.bos, *ours.encode("sea<eos>")]
    assert ours.eos not in said
