"""Every program of a model, as it is lowered for accelerators: precision of products, scatters."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import quant, sharding, tree
from jaxtune.adapters import lora
from jaxtune.data.batches import Batch
from jaxtune.decoding import outline
from jaxtune.decoding.sampling import Sampling
from jaxtune.display.errors import UserError
from jaxtune.export import verify
from jaxtune.models import programs
from jaxtune.models.decoder import Decoder, DecoderConfig, LayerKind
from jaxtune.models.forward import hidden_states
from jaxtune.models.paligemma import PaliGemma, PicturesConfig
from jaxtune.models.rope import default
from jaxtune.models.siglip import SiglipConfig
from jaxtune.training.objectives import CROSS_ENTROPY, Forward, log_probs
from jaxtune.training.optim import optimizer
from jaxtune.training.population import Population, compiled_losses, compiled_population_step
from jaxtune.training.step import TrainState, compiled_eval, compiled_step, split, train_step

PLATFORMS = ("tpu", "cuda")
SIZES = dict(vocabulary=96, width=64, hidden=64, heads=2, kv_heads=1, head_size=16, context=1024)
LAYER = LayerKind(default(1e4, 16), 48)
CONFIG = DecoderConfig(**SIZES, layers=(LAYER,), query_scale=0.25, tied=True, logit_softcap=30.0)
TOWER = SiglipConfig(side=28, patch=14, width=32, hidden=48, heads=2, layers=1)
FULL = ((r".*", True),)
DRAWN: dict[type, dict] = {}  # weights of each kind of model
LONG = 512  # tokens from which on attention is computed in blocks
EXACT = "HIGHEST, HIGHEST"
PRODUCT = re.compile(r"dot_general .*? : \(tensor<([^>]*)>, tensor<([^>]*)>\)")
SCATTER = re.compile(
    r'"stablehlo.scatter".*?unique_indices = (\w+)}?> .*?\}\) : \(tensor<([^>]*)>', re.S
)


def products(traced) -> set[tuple[str, str, str]]:
    """Precision and operand types of a program's floating-point products, for TPU and GPU."""
    text = traced.lower(lowering_platforms=PLATFORMS).as_text()
    found = set()
    for line in text.splitlines():
        if "dot_general" in line:
            types = [each.split("x")[-1] for each in PRODUCT.search(line).groups()]
            stated = re.search(r"precision = \[(.*?)\]", line)
            if types[0] in ("f32", "bf16", "f16"):
                found.add((stated and stated[1], *types))
    assert "stablehlo.convolution" not in text
    assert found, "the program multiplies nothing"
    return found


def batch(length: int = 24, rows: int = 2, pictures: bool = False) -> Batch:
    """Rows of tokens of which the last eight are scored."""
    tokens = np.random.default_rng(0).integers(1, 96, (rows, length)).astype(np.int32)
    if pictures:
        tokens[:, :4] = 96
    where = np.tile(np.arange(length - 9, length - 1, dtype=np.int32), (rows, 1))
    return Batch(
        tokens=tokens,
        positions=None,
        segments=None,
        valid=np.ones(tokens.shape, bool),
        causal=np.ones(tokens.shape, bool) if pictures else None,
        where=where,
        targets=np.take_along_axis(tokens, where + 1, 1),
        weights=np.ones(where.shape, np.float32),
        images=np.zeros((rows, 1, 28, 28, 3), np.float32) if pictures else None,
    )


def weights(model, given) -> dict:
    """Random weights of a model, drawn once: its precision and dtype have no part in them."""
    kind = type(model)
    if kind not in DRAWN:
        drawn = jax.jit(model.init)(jax.random.key(0), *given)["params"]
        DRAWN[kind] = jax.tree.map(np.asarray, drawn)
    return DRAWN[kind]


def made(kind: str, **fields):
    """A model of random weights, its variables, and the rules of what trains."""
    if kind == "pictures":
        model = PaliGemma(CONFIG, PicturesConfig(TOWER, token=96), **fields)
        given = (jnp.zeros((1, 4), jnp.int32), jnp.zeros((1, 28, 28, 3)))
    else:
        model, given = Decoder(CONFIG, **fields), (jnp.zeros((1, 4), jnp.int32),)
    params = jax.tree.map(jnp.asarray, weights(model, given))
    if kind == "nf4":
        flat = tree.flatten(params)
        chosen = quant.kinds(flat, "nf4")
        params = tree.unflatten(
            {p: quant.quantize(np.asarray(w), "nf4") if p in chosen else w for p, w in flat.items()}
        )
    if kind in ("full", "pictures"):
        return model, {"params": params}, FULL
    variant = "dora" if kind == "dora" else "lora"
    key = jax.random.key(1)
    given = {"params": params}
    return model, lora.add_lora(given, 2, key=key, dropout=0.1, variant=variant), lora.TRAINABLE


def step_of(kind: str, rows: Batch, name: str = "adamw", **fields):
    """The traced training step."""
    model, variables, rules = made(kind, **fields)
    chosen = optimizer(name)
    state = TrainState.create(variables, trainable=rules, optimizer=chosen)
    given = (state.replace(frozen=None), state.frozen, rows, CROSS_ENTROPY)
    return compiled_step.trace(model, chosen, *given)


STEPS = [
    ("lora", batch(LONG), "adamw"),
    ("nf4", batch(), "adamw8bit"),
    ("dora", batch(), "lion"),
    ("full", batch(), "adafactor"),
    ("pictures", batch(pictures=True), "sgd"),
]


@pytest.mark.slow
@pytest.mark.parametrize("kind, rows, name", STEPS)
def test_no_product_of_a_step_is_left_at_the_default(kind, rows, name):
    assert products(step_of(kind, rows, name)) == {(EXACT, "f32", "f32")}


@pytest.mark.slow
def test_no_product_of_other_programs_is_left_at_the_default():
    model, variables, _ = made("dora")
    rows = batch()
    mesh = sharding.make_mesh(dict(fsdp=1), jax.devices()[:1])
    sizes = outline.Batch(rows=2, longest=12, pictures=0, new=4)
    prefill = outline.traced_prefill(model, variables, mesh, sizes, Sampling(), 1)
    asked = (rows.tokens, None, rows.valid, None, rows.where)
    traced = {
        "eval": compiled_eval.trace(model, variables, rows, CROSS_ENTROPY),
        "prefill": prefill,
        "decode": outline.traced_loop(model, variables, prefill.out_info),
        "states": hidden_states.trace(model, variables, rows),
        "verify": verify._logits.trace(model, variables, *asked),
        "scores": jax.jit(partial(log_probs, model)).trace(variables, rows),
    }
    for name, each in traced.items():
        assert products(each) == {(EXACT, "f32", "f32")}, name


@pytest.mark.slow
def test_no_product_of_a_population_is_left_at_the_default():
    model, variables, rules = made("lora")
    chosen = optimizer("adamw")
    state = partial(TrainState.create, variables, trainable=rules, optimizer=chosen)
    members = Population.of([state(), state()])
    given = (members.states, members.shared, batch())
    step = compiled_population_step.trace(model, chosen, *given, False, CROSS_ENTROPY)
    losses = compiled_losses.trace(model, *given, CROSS_ENTROPY)
    assert products(step) == products(losses) == {(EXACT, "f32", "f32")}


@pytest.mark.slow
def test_no_product_of_what_a_user_differentiates_is_left_at_the_default():
    """Also not those of a gradient that attention or the loss brings, which is traced later."""
    model, variables, _ = made("lora")
    tokens = batch(LONG).tokens

    def mean(variables):
        return model.apply(variables, tokens).mean()

    def forward(variables):  # the head does not train, so that the loss brings its gradient
        return Forward(model, *split(variables, lora.TRAINABLE))

    def scored(variables):
        return forward(variables).log_probs(batch()).sum()

    def lost(variables):
        return forward(variables).cross_entropy(batch())

    for function in (mean, scored, lost):
        differentiate = jax.jit(jax.grad(function))
        assert products(differentiate.trace(variables)) == {(EXACT, "f32", "f32")}


def test_products_of_adapters_alone_are_exact_in_every_dtype():
    w = jnp.ones((2, 8, 8), jnp.bfloat16)
    params = {"params": tree.unflatten({"layers/attn/q/w": w, "embed/w": w[0]})}
    variables = lora.add_lora(params, 2, key=jax.random.key(0), variant="dora")
    (adapter,) = lora.adapters(variables).values()
    merge = lora.merged.trace(w, adapter, jnp.bfloat16)
    norms = lora._all_norms.trace({"w": w}, {"w": adapter})
    halved = lora._decomposed.trace(w, adapter)
    assert products(merge) == products(norms) == {(EXACT, "f32", "f32")}
    text = halved.lower(lowering_platforms=("tpu",)).as_text()
    assert "dot_general" in text and "DEFAULT" not in text


def test_in_bfloat16_only_products_of_bfloat16_are_at_the_default():
    """In gradients, float32 that came of a product of bfloat16 is multiplied by bfloat16 again."""
    model, variables, _ = made("dora", dtype=jnp.bfloat16)
    found = products(compiled_eval.trace(model, variables, batch(LONG), CROSS_ENTROPY))
    norms = {(EXACT, "f32", "f32")}
    assert {each for each in found if "f32" in each} == norms
    assert {each[0] for each in found - norms} == {"DEFAULT, DEFAULT"}


@pytest.mark.parametrize(
    "name, stated", dict(tf32="HIGH", bf16x3="HIGH", default="DEFAULT").items()
)
def test_another_precision_is_had_by_name(name, stated):
    found = products(step_of("lora", batch(), precision=name))
    assert found == {(f"{stated}, {stated}", "f32", "f32")}


def test_default_leaves_jaxs_own_setting():
    model, variables, _ = made("lora", precision="default")
    with jax.default_matmul_precision("highest"):
        traced = compiled_eval.trace(model, variables, batch(), CROSS_ENTROPY)
    assert products(traced) == {(EXACT, "f32", "f32")}


def test_comparisons_choose_full_precision(monkeypatch):
    """Though the model trains in another."""
    seen = []
    monkeypatch.setattr(verify, "_logits", lambda model, *given: seen.append(model) or 1 / 0)
    model, variables, _ = made("lora", precision="default")
    with pytest.raises(ZeroDivisionError):
        verify.observed(model, variables, verify.random_rows(model))
    assert programs.rule(seen[0]).matmul == "highest"


def test_an_unknown_precision_is_refused():
    model, variables, _ = made("lora", precision="exact")
    with pytest.raises(UserError, match="precision 'exact': expected one of auto, highest, tf32"):
        model.apply(variables, batch().tokens)


@pytest.mark.slow
def test_a_cpu_computes_the_same_bits_in_every_precision():
    found = []
    for name in ("auto", "default"):
        model, variables, rules = made("lora", precision=name)
        chosen = optimizer("adamw")
        state = TrainState.create(variables, trainable=rules, optimizer=chosen)
        state, metrics = train_step(model, chosen, state, batch())
        found.append((metrics, state.trainable))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), *found))


def order_matters(traced) -> int:
    """The number of scatters of floats whose indices may be equal."""
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    return sum(
        unique == "false" and kind.split("x")[-1] in ("f32", "bf16")
        for unique, kind in SCATTER.findall(text)
    )


@pytest.mark.slow
def test_the_only_sums_in_any_order_are_those_of_scored_positions_and_of_embeddings():
    """At a scored position one summand is not zero, so that only embeddings feel the order."""
    assert order_matters(step_of("lora", batch(LONG))) == 1
    assert order_matters(step_of("full", batch(LONG))) == 2


def test_deterministic_programs_are_compiled_as_such_for_gpus_alone(monkeypatch):
    model, variables, _ = made("lora", deterministic=True)
    monkeypatch.setitem(compiled_eval.__dict__, "_same", "of a GPU")
    here = compiled_eval._for(model, variables, {})
    assert here is compiled_eval._plain
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compiled_eval._for(model, variables, {}) == "of a GPU"
    assert compiled_eval._for(model.clone(deterministic=False), variables, {}) is here


@pytest.mark.slow
def test_deterministic_programs_run_inside_others(monkeypatch):
    """A population's step has a step inside, and JAX takes options of the outermost one alone."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # the options are known on a CPU too
    model, variables, rules = made("lora", deterministic=True)
    chosen = optimizer("adamw")
    state = partial(TrainState.create, variables, trainable=rules, optimizer=chosen)
    members = Population.of([state(), state()])
    given = (members.states, members.shared, batch())
    compiled_population_step.lower(model, chosen, *given, False, CROSS_ENTROPY)
