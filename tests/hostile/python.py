"""The Python interface, called with values that do not fit."""

import numpy as np
from hypothesis import strategies as st

from tests.hostile.explore import Probe
from tests.hostile.outcomes import Silent
from tests.hostile.strategies import EXTREMES, junk, texts
from tests.hostile.world import World

whole = st.sampled_from([each for each in EXTREMES if isinstance(each, int)])
numbers = st.sampled_from(EXTREMES)
ids = st.integers(0, 500)
# Prompts of one length only, so that few programs are compiled.
prompts = st.one_of(
    st.lists(st.just([5, 6, 7]), min_size=1, max_size=2),
    st.lists(st.lists(ids | numbers, max_size=4), max_size=3),
    st.lists(texts, max_size=2),
    junk,
)
WRONG = ["matrix", "floats", "ragged", "text", "scalar", "empty", "outside", "list"]


def probes(world: World) -> list[Probe]:
    """Returns the classes of calls."""
    floats = dict.fromkeys(("temperature", "top_p", "min_p", "repetition"), st.none() | numbers)
    counts = dict.fromkeys(("top_k", "samples", "seed", "batch"), whole)
    generated = st.tuples(
        prompts,
        st.fixed_dictionaries(
            {"max_new_tokens": st.just(2) | whole},
            optional=floats | counts | {"stops": st.lists(whole, max_size=2)},
        ),
    )
    kinds = st.sampled_from([None, "nf4", "int8", "nf4-double", "int5", ""]) | texts
    loaded = st.fixed_dictionaries(
        {},
        optional={
            "dtype": st.sampled_from(["auto", "float32", "int8", "complex64", ""]) | texts,
            "quant": kinds,
            "attention": st.sampled_from(["plain", "splash", "x"]) | texts,
            "compute": st.sampled_from(["auto", "float16"]) | texts,
            "rules": st.none() | st.lists(st.tuples(texts, st.none()), max_size=2),
        },
    )
    tuned = st.fixed_dictionaries(
        {},
        optional={
            "rank": st.sampled_from([1, 2]) | whole,
            "alpha": numbers,
            "targets": st.sampled_from(["all-linear", "attention"]) | st.lists(texts, max_size=2),
            "dropout": numbers,
            "variant": st.sampled_from(["lora", "dora", "x"]) | texts,
            "init": st.sampled_from(["default", "x"]) | texts,
        },
    )
    return [
        Probe("python: generate", 300, generated, of_generate(world), chunk=50),
        Probe("python: load", 300, loaded, of_load(world), chunk=50),
        Probe("python: add_lora", 300, tuned, of_lora(world), chunk=50),
        Probe("python: apply", 60, st.sampled_from(WRONG), of_apply(world), chunk=60),
    ]


def of_generate(world: World):
    def check(value):
        import jaxtune

        model, variables = world.loaded
        given, options = value
        answers = jaxtune.generate(model, variables, given, **options)
        if any(len(answer) > options["max_new_tokens"] for answer in answers):
            raise Silent("an answer that is too long")

    return check


def of_load(world: World):
    def check(options):
        import jaxtune

        jaxtune.load(world.base, **options)

    return check


def of_lora(world: World):
    def check(options):
        import jax

        import jaxtune

        _, variables = world.loaded
        made = jaxtune.add_lora(variables, key=jax.random.key(0), **options)
        for leaf in jax.tree.leaves(made["lora"]):
            if not np.isfinite(np.asarray(leaf)).all():
                raise Silent("an adapter that is not finite")

    return check


def of_apply(world: World):
    def check(kind):
        model, variables = world.loaded
        tokens = {
            "matrix": np.zeros((1, 3), np.int32),
            "floats": np.zeros((1, 3), np.float32),
            "ragged": [[1, 2], [3]],
            "text": ["hello"],
            "scalar": 3,
            "empty": np.zeros((0, 3), np.int32),
            "outside": np.full((1, 3), 100_000, np.int32),
            "list": [[2, 3]],
        }[kind]
        model.apply(variables, tokens)

    return check
