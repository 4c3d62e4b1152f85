"""Answers beside transformers' generate."""

import subprocess
import sys
from functools import partial

import jax
import numpy as np
import pytest
import torch

import jaxtune
from jaxtune.decoding import generate as decoding
from jaxtune.decoding.generate import completions, generate, next_tokens
from jaxtune.decoding.sampling import Sampling
from tests import devices, reference
from tests.adapters.test_lora import busy, peft_twin
from tests.decoding.prompts import NAME, STOPS, prompts
from tests.marks import slow_after

NEW = 48


def continued(model, prompt: list[int], new: int, stops=STOPS) -> tuple[list[int], np.ndarray]:
    """transformers' greedy answer, and the log-probability of each of its tokens."""
    with torch.no_grad():
        found = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=list(stops),
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
    tokens = found.sequences[0, len(prompt) :].tolist()
    log_probs = torch.log_softmax(torch.cat(found.logits).float(), -1).numpy()
    return tokens, log_probs[np.arange(len(tokens)), tokens]


def follow(model, variables, live, asked, new: int) -> list[list[int]]:
    """Greedy answers, held against the reference's: the tokens and their log_probs.

    Some of these models say one token over and over, but how likely it is depends on all before.
    """
    found = completions(model, variables, asked, new, stops=STOPS)
    for prompt, answer in zip(asked, found, strict=True):
        tokens, log_probs = continued(live, prompt, new)
        assert answer.tokens == tokens
        # Logits differ by up to 5e-5 of a deviation of up to ten.
        np.testing.assert_allclose(answer.log_probs, log_probs, atol=1e-3)
    return [answer.tokens for answer in found]


# Of the awkward models, the one whose angles change on the way is fast enough for `make check`.
@pytest.mark.parametrize("name", slow_after(0, sorted(reference.CASES)))
def test_greedy_answers_are_those_of_transformers(pair, name):
    made = pair(name)
    asked = prompts(made)
    new = NEW if "longrope" in name else NEW // 2  # beyond where the angles change, or a window
    found = follow(made.model, made.variables, made.reference, asked, new)
    assert max(map(len, found)) > 6  # beyond a window


@pytest.mark.slow
def test_greedy_answers_with_an_adapter_are_those_of_peft(pair, tmp_path):
    made = pair("llama-llama3")
    variables = busy(jaxtune.add_lora(made.variables, rank=4, alpha=8, key=jax.random.key(0)))
    twin = peft_twin(made, tmp_path, variables, r=4, lora_alpha=8)
    asked = prompts(made, 8)
    found = follow(made.model, variables, twin, asked, NEW)
    assert found == generate(made.model, jaxtune.merge(variables), asked, NEW, stops=STOPS)
    assert found != generate(made.model, made.variables, asked, NEW, stops=STOPS)


@pytest.mark.slow
def test_a_quantised_base_answers_as_its_plain_twin(base):
    model, variables = jaxtune.load(base, quant="nf4-double")
    plain = jaxtune.merge(jaxtune.add_lora(variables, rank=1, key=jax.random.key(0)))
    asked = [[3, 4, 5], [6, 7, 8, 9, 10]]
    assert generate(model, variables, asked, 12) == generate(model, plain, asked, 12)


@pytest.mark.slow
def test_what_is_cached_changes_nothing(pair):
    """Each token and its log_prob are those of a forward pass over all that went before."""
    made = pair(NAME)
    prompt = prompts(made, 1)[0]
    [answer] = completions(made.model, made.variables, [prompt], 24, stops=())
    whole = np.int32([prompt + answer.tokens])
    log_probs = jax.nn.log_softmax(made.apply(made.variables, whole))[0]
    for place, (token, log_prob) in enumerate(zip(answer.tokens, answer.log_probs, strict=True)):
        row = log_probs[len(prompt) + place - 1]
        assert token == int(row.argmax())
        assert log_prob == pytest.approx(float(row[token]), abs=2e-5)
    [first] = next_tokens(made.model, made.variables, [prompt], 5)
    row = np.exp(log_probs[len(prompt) - 1])
    assert [token for token, _ in first] == np.argsort(-row)[:5].tolist()
    np.testing.assert_allclose([each for _, each in first], np.sort(row)[::-1][:5], rtol=1e-4)


@pytest.mark.slow
def test_answers_do_not_depend_on_the_prompts_beside_them(pair):
    made = pair(NAME)
    asked = prompts(made, 5)
    for options in ({}, dict(temperature=1.0, top_p=0.9, samples=2, seed=3)):
        ask = partial(generate, made.model, made.variables, stops=STOPS, **options)
        together = ask(asked, 16)
        apart = [answer for prompt in asked for answer in ask([prompt], 16)]
        backwards = ask(asked[::-1], 16, batch=2)
        count = options.get("samples", 1)
        grouped = [backwards[i : i + count] for i in range(0, len(backwards), count)][::-1]
        assert together == apart == [answer for group in grouped for answer in group]
    other = generate(made.model, made.variables, asked, 16, stops=STOPS, temperature=1.0, seed=4)
    assert other != together[::2]


@pytest.mark.slow
def test_an_answer_may_be_finished_by_what_is_said_of_it(pair):
    made = pair(NAME)
    asked = prompts(made, 3)
    whole = completions(made.model, made.variables, asked, 30, stops=())
    halted = completions(
        made.model, made.variables, asked, 30, stops=(), finished=lambda tokens: len(tokens) >= 10
    )
    for one, other in zip(whole, halted, strict=True):
        assert 10 <= len(other.tokens) < 30 and other.ended and not one.ended
        assert other.tokens == one.tokens[: len(other.tokens)]


@pytest.mark.slow
def test_tokens_come_one_by_one(pair):
    made = pair("phi3-longrope-short")  # whose angles change on the way
    prompt = prompts(made, 1, 12)[0]
    how = dict(stops=(2,), sampling=Sampling.of())
    streamed = list(decoding.stream(made.model, made.variables, prompt, 40, **how))
    assert streamed == generate(made.model, made.variables, [prompt], 40, stops=(2,))[0]


@pytest.mark.slow
def test_a_stream_waits_for_the_device_once_for_a_few_tokens(base, monkeypatch):
    model, variables = jaxtune.load(base)
    waits, advance = [], decoding.advance

    def counted(*given):
        waits.append(given[-1])
        return advance(*given)

    monkeypatch.setattr(decoding, "advance", counted)
    tokens = decoding.stream(model, variables, [3, 40, 50], 9, stops=(), sampling=Sampling.of())
    assert next(tokens) >= 0 and waits == [1]  # the first one as soon as it is there
    assert len(list(tokens)) == 8 and waits == [1, 5, 9]


@pytest.mark.slow
def test_on_eight_devices_answers_are_the_same(base):
    code = f"""
import jax, jaxtune
prompts = [[3 + i, 40, 50 + i] * (1 + i % 4) for i in range(8)]
assert len(jax.devices()) == 8
for quant, axes in ((None, dict(fsdp=8)), ("nf4-double", dict(data=2, fsdp=2, tensor=2))):
    answers = []
    for mesh in (None, jaxtune.make_mesh(axes)):
        model, variables = jaxtune.load({str(base)!r}, "float32", quant, mesh=mesh)
        answers.append(jaxtune.generate(model, variables, prompts, 12))
    assert answers[0] == answers[1], quant
"""
    subprocess.run([sys.executable, "-c", code], env=devices.environment(8), check=True)


def test_stops_are_what_the_checkpoint_s_files_say(pair, tmp_path):
    made = pair(NAME)
    assert decoding.stops_of(made.model) == (2,)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 106]}')
    assert decoding.stops_of(made.model.clone(origin=jaxtune.Origin(tmp_path))) == (1, 106)
