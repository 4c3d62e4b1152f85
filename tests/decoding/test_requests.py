"""Requests that no answer can follow are refused."""

from functools import partial

import pytest

from jaxtune.decoding.generate import generate
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
