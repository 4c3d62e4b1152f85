"""The decoder as code that others import: its parts, its precision, its compiled size."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune.adapters.lora import add_lora
from jaxtune.models import rope
from jaxtune.models.decoder import Attention, Decoder, DecoderConfig, LayerKind, Shared
from jaxtune.models.layers import Linear, RMSNorm
from jaxtune.models.layout import arrange
from jaxtune.models.remat import REMAT

LOCAL, GLOBAL = (
    LayerKind(rope.default(10_000.0, 8), 5),
    LayerKind(rope.linear(1_000_000.0, 8, factor=8.0)),
)
CONFIG = DecoderConfig(
    vocabulary=101,
    width=32,
    hidden=48,
    heads=4,
    kv_heads=2,
    head_size=8,
    layers=(LOCAL, LOCAL, GLOBAL, LOCAL),
    context=64,
    query_scale=8**-0.5,
    tied=True,
)
TOKENS = np.random.default_rng(0).integers(0, 101, (2, 12))


@pytest.fixture(scope="module")
def variables():
    return jax.jit(Decoder(CONFIG).init)(jax.random.key(0), TOKENS)


@pytest.mark.slow
def test_the_parts_make_the_whole(variables):
    model = Decoder(CONFIG)
    x = model.apply(variables, TOKENS, method="embed")
    hidden = model.apply(variables, x, arrange(TOKENS.shape), method="hidden")
    chosen = model.apply(variables, hidden[:, [3, 7]], method="logits")
    whole = model.apply(variables, TOKENS)
    np.testing.assert_allclose(chosen, whole[:, [3, 7]], atol=1e-6)


def test_later_tokens_change_nothing_before_them(variables):
    changed = TOKENS.copy()
    changed[:, 8] = (changed[:, 8] + 1) % 101
    apply = jax.jit(Decoder(CONFIG).apply)
    before, after = (apply(variables, tokens) for tokens in (TOKENS, changed))
    np.testing.assert_array_equal(before[:, :8], after[:, :8])
    assert (np.abs(before[:, 8:] - after[:, 8:]).max(-1) > 1e-4).all()


def test_kinds_are_told_apart_by_the_scan(variables):
    """Each layer has its own window and rope: reordering them changes what comes out."""
    reordered = replace(CONFIG, layers=(GLOBAL, LOCAL, LOCAL, LOCAL))
    assert reordered.kinds == (GLOBAL, LOCAL)
    one, other = (Decoder(config).apply(variables, TOKENS) for config in (CONFIG, reordered))
    assert np.abs(one - other).max() > 1e-3


@pytest.mark.slow
def test_gradients_through_remat_are_those_without(variables):
    """The scan rematerialises its layers; finite differences know nothing of that."""
    model = Decoder(CONFIG)

    def loss(scale):
        params = jax.tree.map(lambda leaf: leaf * (1 + scale), variables["params"])
        return jnp.square(model.apply({"params": params}, TOKENS)).mean()

    step = 1e-3
    expected = (loss(step) - loss(-step)) / (2 * step)
    # Third-order error of the difference, and float32 over 2e-3.
    assert float(jax.grad(loss)(0.0)) == pytest.approx(float(expected), rel=1e-2)


@pytest.mark.slow
def test_what_is_computed_again_changes_memory_alone(variables):
    """Over long rows, with adapters: these gradients, within these bytes of temporaries."""
    tokens = np.random.default_rng(3).integers(0, 101, (1, 384))
    adapted = add_lora(variables, rank=4, key=jax.random.key(1))

    def gradients(remat: str):
        model = Decoder(CONFIG).clone(remat=remat)
        step = jax.grad(lambda tuned: jnp.square(model.apply(tuned, tokens)).mean())
        compiled = jax.jit(step).lower(adapted).compile()
        return compiled(adapted), compiled.memory_analysis().temp_size_in_bytes

    assert list(REMAT) == ["full", "offload", "dots", "none"]
    (full, least), (offload, same), (dots, more), (none, most) = map(gradients, REMAT)
    assert same == least  # a CPU's memory is the host's
    for other in (offload, dots, none):
        # The same products, which XLA may fuse otherwise: the rounding of float32.
        jax.tree.map(
            lambda one, two: np.testing.assert_allclose(two, one, atol=1e-5 * np.abs(one).max()),
            full,
            other,
        )
    config, floats = CONFIG, 4 * len(CONFIG.layers) * tokens.size
    heads = config.head_size * (config.heads + 2 * config.kv_heads)
    linear = floats * (heads + config.width + 2 * config.hidden)  # q, k, v, o, gate and up
    # What is kept, and little else: not what adapters give beside it, nor scores of all pairs.
    assert least + 0.8 * linear < more < least + 1.5 * linear
    assert most > more + floats * config.heads * tokens.size


def test_the_gradient_of_attention_keeps_no_heads_in_float32():
    """Heads in bfloat16 are normed and rotated again, by tables of which it keeps no copy."""
    config = replace(CONFIG, qk_norm=True)
    model, kind = Attention(config), jnp.zeros((), jnp.int32)
    table = jnp.ones((len(config.kinds), *TOKENS.shape, config.head_size // 2))
    place = (kind, kind, Shared(arrange(TOKENS.shape), table, table, attention="plain"))
    x = jax.ShapeDtypeStruct((*TOKENS.shape, config.width), jnp.bfloat16)

    def kept(x):
        variables = model.init(jax.random.key(0), x, None, *place)
        return jax.vjp(lambda x: model.apply(variables, x, None, *place)[0], x)[1]

    arrays = jax.tree.leaves(jax.eval_shape(kept, x))
    floats = {each.shape for each in arrays if each.dtype == jnp.float32} - {table.shape}
    wide = {config.head_size, config.head_size // 2}
    assert not [shape for shape in floats if len(shape) > 2 and shape[-1] in wide]
    halves = {each.shape for each in arrays if each.dtype == x.dtype}
    assert (*TOKENS.shape, config.heads, config.head_size) in halves


def test_remat_is_one_of_four():
    with pytest.raises(ValueError, match="remat 'some': expected one of full, offload, dots, none"):
        Decoder(CONFIG, remat="some").init(jax.random.key(0), TOKENS)


def test_activations_keep_their_dtype_and_logits_are_float32(variables):
    model = Decoder(CONFIG, dtype=jnp.bfloat16)
    x = model.apply(variables, TOKENS, method="embed")
    hidden = model.apply(variables, x, arrange(TOKENS.shape), method="hidden")
    assert (x.dtype, hidden.dtype) == (jnp.bfloat16, jnp.bfloat16)
    assert model.apply(variables, hidden, method="logits").dtype == jnp.float32


def test_depth_does_not_grow_the_program():
    """What is compiled for 34 layers is what is compiled for 6."""

    def program(depth: int) -> str:
        model = Decoder(replace(CONFIG, layers=(LOCAL, GLOBAL) * (depth // 2)))
        shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
        return jax.jit(model.apply).lower(shapes, TOKENS).as_text()

    shallow, deep = program(6), program(34)
    assert len(deep.splitlines()) == len(shallow.splitlines())


def test_init_makes_a_model_that_neither_dies_nor_explodes(variables):
    logits = Decoder(CONFIG).apply(variables, TOKENS)
    assert 0.01 < logits.std() < 10


def test_rms_norm_is_the_formula():
    x = np.random.default_rng(1).normal(size=(3, 16)).astype(np.float32) * 100
    scale = np.linspace(-1, 1, 16, dtype=np.float32)
    for offset in (0.0, 1.0):
        got = RMSNorm(1e-6, offset).apply({"params": {"scale": scale}}, x)
        want = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6) * (offset + scale)
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_linear_takes_any_leading_shape():
    x = np.random.default_rng(2).normal(size=(2, 3, 5, 7)).astype(np.float32)
    layer = Linear(4, bias=True)
    params = {"w": np.full((7, 4), 0.5, np.float32), "b": np.arange(4, dtype=np.float32)}
    got = layer.apply({"params": params}, x)
    np.testing.assert_allclose(got, x @ params["w"] + params["b"], atol=1e-6)
