"""Requests that no answer can follow are refused."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune.decoding.generate import generate
from jaxtune.decoding.requests import make_requests
from jaxtune.display.errors import UserError
from tests.decoding.prompts import NAME


def test_prompts_that_cannot_be_answered(pair):
    made = pair(NAME)
    ask = partial(generate, made.model, made.variables)
    with pytest.raises(ValueError, match="prompt 1 is empty: a model needs at least one token"):
        ask([[3], []])
    with pytest.raises(ValueError, match=r"prompt 0 has 60 tokens, which with 32 new ones exceed"):
        ask([[3] * 60])
    with pytest.raises(ValueError, match="prompt 0 has a token outside the vocabulary"):
        ask([[10**6]])
    with pytest.raises(ValueError, match="max_new_tokens 0: expected 1 or more"):
        ask([[3]], 0)
    with pytest.raises(ValueError, match="top_p without a temperature: decoding is greedy"):
        ask([[3]], top_p=0.9)
    with pytest.raises(ValueError, match="top_k 0: expected a number from 1"):
        ask([[3]], temperature=1.0, top_k=0)


@pytest.mark.parametrize(
    "options, problem",
    [
        (dict(samples=2**32), "samples 4294967296: expected a number from 1 to 65,536"),
        (dict(samples=0), "samples 0: expected a number from 1"),
        (dict(batch=0), "batch 0: expected a number from 1 to 65,536"),
        (dict(seed=2**32), "seed 4294967296: expected a number from 0 to 4,294,967,295"),
        (dict(seed=-1), "seed -1: expected a number from 0"),
        (dict(stops=[2, 2**63]), "stops: 9223372036854775808 is no token"),
    ],
)
def test_numbers_that_no_decoding_takes(options, problem, pair):
    """They ended in a hang and in an OverflowError; found by `make hostile`."""
    made = pair(NAME)
    with pytest.raises(UserError, match=problem):
        generate(made.model, made.variables, [[3]], 2, **options)


@pytest.mark.slow
def test_the_largest_seed(pair):
    """It ended in an OverflowError from 2^31 on; found by `make hostile`."""
    made = pair(NAME)
    ask = partial(generate, made.model, made.variables, [[3]], 2, temperature=1.0)
    assert len(ask(seed=2**32 - 1)[0]) == 2


@pytest.mark.parametrize(
    "prompts, problem",
    [
        ("hello", "the prompts are text, 'hello'"),
        (7, "the prompts are a value of type int, 7"),
        (["hello"], "prompt 0 is text, 'hello'"),
        ([2, 3], "prompt 0 is a value of type int, 2"),
        ([[2], ["a"]], "prompt 1 is a value of type list, ['a']"),
        ([[2.5]], "prompt 0 is a value of type list, [2.5]"),
        ([[[2]]], "prompt 0 is a value of type list, [[2]]"),
        ([[[2], [3, 4]]], "prompt 0 is a value of type list"),
        ([[2**70]], "prompt 0 is a value of type list"),
        ([None], "prompt 0 is a value of type NoneType, None"),
        ([{"a": 1}], "prompt 0 is a value of type dict"),
    ],
)
def test_prompts_that_are_no_token_ids(pair, prompts, problem):
    made = pair(NAME)
    with pytest.raises(ValueError, match=r"expected a list of prompts, .*jaxtune.answers") as found:
        generate(made.model, made.variables, prompts)
    assert str(found.value).startswith(problem)


def test_prompts_can_be_arrays(pair):
    model = pair(NAME).model
    for prompts in ([[3, 4]], np.array([[3, 4]]), jnp.array([[3, 4]]), [(3, np.int64(4))]):
        assert [each.tokens for each in make_requests(model, prompts, None, 1)] == [(3, 4)]


@pytest.mark.parametrize(
    "tokens, found",
    [
        ([[2, 3]], "a value of type list, [[2, 3]]"),
        ("hello", "a value of type str, 'hello'"),
        (np.array([2, 3]), "int64[2]"),
        (np.array([[2.0]]), "float64[1, 1]"),
    ],
)
def test_tokens_that_a_model_cannot_read(pair, tokens, found):
    made = pair(NAME)
    with pytest.raises(ValueError, match=r"expected an array of token ids int32\[B, T\]") as error:
        made.model.apply(made.variables, tokens)
    assert str(error.value).startswith(f"the tokens are {found}: ")
