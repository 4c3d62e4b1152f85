"""The programs of decoding as a plan traces them are those that `generate` then runs."""

import logging

import jax
import pytest

import jaxtune
from jaxtune import sharding
from jaxtune.decoding import outline
from jaxtune.decoding.generate import generate
from jaxtune.decoding.sampling import Sampling
from tests.decoding.prompts import NAME, STOPS, prompts


@pytest.mark.slow
def test_what_was_compiled_from_shapes_is_not_compiled_again(pair, caplog):
    mesh = jaxtune.make_mesh({"data": 1, "fsdp": 1, "tensor": 1})
    model, variables = jaxtune.load(pair(NAME).directory, mesh=mesh)
    shapes = sharding.described(variables)
    asked = prompts(pair(NAME), 3)
    sizes = outline.Batch(rows=3, longest=max(map(len, asked)), pictures=0, new=5)

    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        traced = outline.traced_prefill(model, shapes, mesh, sizes, Sampling.of(), len(STOPS))
        compiled = traced.lower().compile()
        state = sharding.described(traced.out_info, compiled.output_shardings)
        outline.traced_loop(model, shapes, state).lower().compile()
        assert compilations(caplog) == {"begun", "advanced"}
        caplog.clear()
        answers = generate(model, variables, asked, 5, stops=STOPS)
        assert not compilations(caplog)
    assert len(answers) == 3


def compilations(caplog) -> set[str]:
    """Names of the programs of decoding that XLA compiled."""
    said = " ".join(each.getMessage() for each in caplog.records)
    return {name for name in ("begun", "advanced") if f"XLA compilation of jit({name})" in said}
