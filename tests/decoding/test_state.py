"""Answers of weights that are no numbers are refused, however they are asked for."""

import jax.numpy as jnp
import pytest

import jaxtune
from jaxtune import tree
from jaxtune.decoding.beams import beam_search
from jaxtune.decoding.generate import completions, next_tokens, stream
from jaxtune.decoding.sampling import Sampling
from jaxtune.decoding.state import NotFiniteError
from tests.marks import slow_after

PROMPT = [2, 10, 20, 30]
ASKED = {
    "completions": lambda *made: completions(*made, [PROMPT], 4, stops=(0, 1)),
    "samples": lambda *made: completions(*made, [PROMPT], 4, temperature=1.0, stops=()),
    "next tokens": lambda *made: next_tokens(*made, [PROMPT], 3),
    "stream": lambda *made: next(stream(*made, PROMPT, 4, stops=(0,), sampling=Sampling.of())),
    "beams": lambda *made: beam_search(*made, [PROMPT], 4, beams=2, stops=(0,)),
}


@pytest.fixture(scope="module", params=[jnp.nan, jnp.inf])
def broken(base, request):
    """A model of which one number in the second layer is none."""
    model, variables = jaxtune.load(base)
    leaves = tree.flatten(variables["params"])
    name = next(path for path in leaves if path.endswith("mlp/down/w"))
    leaves[name] = leaves[name].at[1, 0, 0].set(request.param)
    return model, {"params": tree.unflatten(leaves)}


@pytest.mark.parametrize("way", slow_after(0, ASKED))
def test_logits_that_are_not_finite(way, broken):
    with pytest.raises(NotFiniteError, match=r"are not finite numbers: .* an earlier checkpoint"):
        ASKED[way](*broken)
