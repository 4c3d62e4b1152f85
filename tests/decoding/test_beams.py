"""Beam search beside transformers', answer for answer."""

from functools import partial

import numpy as np
import pytest
import torch

from jaxtune.decoding import beams
from jaxtune.decoding.beams import beam_search
from jaxtune.decoding.generate import generate
from tests.decoding.prompts import STOPS, prompts
from tests.marks import slow_after

# A window, soft caps, and a rope that has changed once a prompt is longer than 16.
NAMES = (
    "qwen2-yarn",
    "gemma2-windows",
    "llama-llama3",
    "mistral-window",
    "phi4-mini-longrope-long",
)
FEW = (3, 4)  # stops that some answers never meet
NEW = 24
CASES = {  # stops, beams, length penalty
    "two beams": (STOPS, 2, 1.0),
    "short ones": (STOPS, 4, 0.5),
    "long ones": (FEW, 4, 2.0),
    "no stop": ((), 4, 1.0),
}
PAIRS = [*((NAMES[0], case) for case in CASES), *((name, "short ones") for name in NAMES[1:])]


def found_by_transformers(model, prompt, new=NEW, stops=STOPS, beams=4, length_penalty=1.0):
    """transformers' best answer and its score."""
    with torch.no_grad():
        found = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=new,
            do_sample=False,
            num_beams=beams,
            early_stopping=False,
            length_penalty=length_penalty,
            eos_token_id=list(stops) or None,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
        )
    return found.sequences[0, len(prompt) :].tolist(), float(found.sequences_scores[0])


def asked_of(made, count: int = 5) -> list[list[int]]:
    """Ragged prompts, all beyond the change of a rope if the model has one."""
    least = (made.model.config.switch or 0) + 1
    random = np.random.default_rng(1)
    lengths = least + random.integers(0, 15, count)
    return [random.integers(10, made.model.config.vocabulary, n).tolist() for n in lengths]


@pytest.mark.parametrize("name, case", slow_after(0, PAIRS))
def test_answers_are_those_of_transformers(pair, name, case):
    made, (stops, count, penalty) = pair(name), CASES[case]
    how = dict(beams=count, length_penalty=penalty, stops=stops)
    asked = asked_of(made)
    found = beam_search(made.model, made.variables, asked, NEW, **how)
    for prompt, answer in zip(asked, found, strict=True):
        tokens, score = found_by_transformers(made.reference, prompt, **how)
        assert answer.tokens == tokens
        # Sums of up to 24 log-probabilities in float32, each to about 1e-5.
        assert answer.score == pytest.approx(score, abs=1e-4)
        total = sum(answer.log_probs) / len(tokens) ** penalty
        assert answer.score == pytest.approx(total, abs=1e-4)
        assert answer.ended == (tokens[-1] in stops)
    lengths = {len(answer.tokens) for answer in found}
    # With a head that is the embedding, random models say a token again and again.
    assert len(lengths) > 2 or stops != STOPS or made.model.config.tied


@pytest.mark.slow
def test_rows_do_not_depend_on_those_beside_them(pair):
    made = pair(NAMES[0])
    asked = prompts(made, 5)
    search = partial(beam_search, made.model, made.variables, max_new_tokens=16, stops=STOPS)
    together = search(asked)
    apart = [search([prompt])[0] for prompt in asked]
    assert [answer.tokens for answer in together] == [answer.tokens for answer in apart]
    scores = [[answer.score for answer in each] for each in (together, apart)]
    np.testing.assert_allclose(*scores, atol=1e-5)  # other shapes of products round otherwise
    backwards = search(asked[::-1], batch=2)[::-1]
    assert [answer.tokens for answer in backwards] == [answer.tokens for answer in apart]


@pytest.mark.slow
def test_one_beam_takes_the_likeliest_token(pair):
    made = pair(NAMES[0])
    asked = prompts(made, 4)
    found = beam_search(made.model, made.variables, asked, 12, beams=1, stops=())
    greedy = generate(made.model, made.variables, asked, 12, stops=())
    assert [answer.tokens for answer in found] == greedy
    wide = beam_search(made.model, made.variables, asked, 12, beams=4, stops=())
    assert [answer.tokens for answer in wide] != greedy
    likelier = [a.score >= b.score for a, b in zip(wide, found, strict=True)]
    assert np.mean(likelier) > 0.5


@pytest.mark.slow
def test_another_penalty_or_length_compiles_nothing(pair):
    made = pair(NAMES[0])
    search = partial(beam_search, made.model, made.variables, prompts(made, 2), stops=STOPS)
    search(max_new_tokens=12)
    programs = [each._cache_size() for each in (beams._begun, beams._searched)]
    search(max_new_tokens=16, length_penalty=0.3)
    assert programs == [each._cache_size() for each in (beams._begun, beams._searched)]


@pytest.mark.slow
def test_what_is_refused(pair):
    made = pair("phi3-longrope-short")  # above 32 tokens its rope is another
    search = partial(beam_search, made.model, made.variables)
    with pytest.raises(ValueError, match=r"has 30 tokens and may get 8 more, .* above 32 tokens"):
        search([[5] * 30], 8)
    search([[5] * 30], 3)
    search([[5] * 33], 8)
    with pytest.raises(ValueError, match="beams 0: expected 1 or more"):
        search([[5]], 8, beams=0)
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        search([[5], []], 8)
