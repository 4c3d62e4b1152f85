"""Adapters against live PEFT: what they compute, how they merge, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

import jaxtune
from jaxtune import tree
from jaxtune.adapters import lora
from jaxtune.adapters.lora import Lora, add_lora, merge
from tests import reference
from tests.marks import slow_after

NAME = "gemma3-linear-mqa"
MODULES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def adapters(variables) -> dict[str, Lora]:
    return tree.flatten(variables["lora"], is_leaf=lambda node: isinstance(node, Lora))


def busy(variables, seed=7):
    """The same adapters with numbers in `b`, so that they do something."""

    def fill(adapter):
        b = 0.1 * jax.random.normal(jax.random.key(seed), adapter.b.shape)
        return adapter.replace(b=b)

    is_leaf = lambda node: isinstance(node, Lora)  # noqa: E731
    return {**variables, "lora": jax.tree.map(fill, variables["lora"], is_leaf=is_leaf)}


def peft_twin(made, tmp_path, variables, **options):
    """A PEFT model with the same base and the same adapters."""
    live = reference.make(made.case, tmp_path)
    twin = get_peft_model(live, LoraConfig(target_modules="all-linear", **options))
    weights = dict(twin.named_parameters())
    with torch.no_grad():
        for path, adapter in adapters(variables).items():
            for layer in range(adapter.a.shape[0]):
                stem = f"base_model.model.model.layers.{layer}.{MODULES[path.split('/')[2]]}"
                parts = {"lora_A.default.weight": adapter.a, "lora_B.default.weight": adapter.b}
                for name, ours in parts.items():
                    weights[f"{stem}.{name}"].copy_(torch.from_numpy(np.array(ours[layer].T)))
                if adapter.magnitude is not None:
                    magnitude = torch.from_numpy(np.array(adapter.magnitude[layer]))
                    weights[f"{stem}.lora_magnitude_vector.default.weight"].copy_(magnitude)
    return twin.eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "options"),
    [
        ("lora", {}),
        ("rslora", {"use_rslora": True}),
        ("dora", {"use_dora": True}),
    ],
)
def test_adapted_logits_are_peft_s(pair, tmp_path, variant, options):
    made = pair(NAME)
    variables = add_lora(made.variables, rank=4, alpha=6, key=jax.random.key(1), variant=variant)
    twin = peft_twin(made, tmp_path, variables, r=4, lora_alpha=6, **options)
    variables = busy(variables)
    refilled = peft_twin(made, tmp_path, variables, r=4, lora_alpha=6, **options)
    tokens = reference.tokens(made.case)
    plain = reference.logits(twin, tokens)
    want = reference.logits(refilled, tokens)
    assert np.abs(plain - want).max() > 0.1 * want.std()  # the adapters matter
    got = np.asarray(jax.jit(made.model.apply)(variables, tokens))
    assert np.abs(got - want).max() < 5e-5 * want.std()
    merged = merge(variables)
    assert "lora" not in merged
    assert np.abs(made.apply(merged, tokens) - want).max() < 5e-5 * want.std()


@pytest.mark.slow
@pytest.mark.parametrize("variant", slow_after(1, reversed(lora.VARIANTS)))
@pytest.mark.parametrize("init", slow_after(1, lora.INITS))
def test_a_fresh_adapter_changes_nothing(pair, variant, init):
    made = pair(NAME)
    tokens = reference.tokens(made.case)
    variables = add_lora(made.variables, rank=3, key=jax.random.key(0), variant=variant, init=init)
    before, after = made.apply(made.variables, tokens), made.apply(variables, tokens)
    np.testing.assert_allclose(after, before, atol=2e-5 * float(before.std()))


@pytest.mark.slow
def test_pissa_takes_the_principal_part(pair):
    made = pair(NAME)
    variables = add_lora(made.variables, rank=3, key=jax.random.key(0), init="pissa")
    before = made.variables["params"]["layers"]["attn"]["q"]["w"]
    after = variables["params"]["layers"]["attn"]["q"]["w"]
    kept, left = (np.linalg.svd(np.asarray(w), compute_uv=False) for w in (before, after))
    np.testing.assert_allclose(left[:, :-3], kept[:, 3:], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_targets(pair):
    variables = pair(NAME).variables
    key = jax.random.key(0)
    everything = adapters(add_lora(variables, key=key))
    assert {path.split("/")[2] for path in everything} == set(MODULES)
    attention = adapters(add_lora(variables, key=key, targets="attention"))
    assert {path.split("/")[1] for path in attention} == {"attn"}
    chosen = adapters(add_lora(variables, key=key, targets=[r"layers/mlp/up/w"], rank=5))
    assert list(chosen) == ["layers/mlp/up/w"]
    assert chosen["layers/mlp/up/w"].a.shape == (3, 48, 5)


@pytest.mark.parametrize(
    ("targets", "paths"),
    [
        (["q_proj", "v_proj"], ["attn/q", "attn/v"]),
        ("self_attn.q_proj", ["attn/q"]),
        (["qkv_proj", "layers/mlp/up/w"], ["attn/k", "attn/q", "attn/v", "mlp/up"]),
        (["gate_up_proj"], ["mlp/gate", "mlp/up"]),
        (["attention", "down_proj"], ["attn/k", "attn/o", "attn/q", "attn/v", "mlp/down"]),
    ],
)
def test_peft_s_names_are_targets(pair, targets, paths):
    key, variables = jax.random.key(0), pair(NAME).variables
    made = jax.eval_shape(lambda: add_lora(variables, key=key, targets=targets))
    assert sorted(adapters(made)) == [f"layers/{path}/w" for path in paths]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"targets": "mlp"}, "'mlp': expected all-linear, attention, the name of a module such as"),
        ({"targets": ["q_prj"]}, r"q_prj    \(matches no leaf; the nearest module name is q_proj"),
        ({"targets": ["embed_tokens"]}, "no adapter can be added to embed/w"),
        ({"targets": ["(.*)*x"]}, r"\(\.\*\)\*x    \(matches no leaf"),
        ({"alpha": 1e308}, r"alpha 1e\+308: expected a number of at most 1e\+06"),
        ({"alpha": float("nan")}, "alpha nan: expected a number"),
        (
            {"targets": ["layers/atn/.*"]},
            r"(?s)layers/atn/\.\*    \(matches no leaf\).*layers/attn/q/w",
        ),
        ({"targets": ["embed/w"]}, "no adapter can be added to embed/w"),
        ({"targets": [r".*/scale"]}, "attn_norm/scale.*: not a linear map"),
        ({"rank": 0}, "rank 0: expected a positive integer"),
        ({"rank": 2**31}, "rank 2147483648: expected a positive integer of at most 16,384"),
        ({"dropout": 1.0}, "dropout 1.0: expected a number from 0 to less than 1"),
        ({"variant": "vera"}, "variant 'vera': expected one of lora, rslora, dora"),
        ({"init": "gauss"}, "init 'gauss': expected one of default, pissa"),
    ],
)
def test_what_is_refused(pair, options, says):
    with pytest.raises(ValueError, match=says):
        add_lora(pair(NAME).variables, key=jax.random.key(0), **options)


@pytest.mark.slow
def test_dropout_leaves_out_its_share(pair):
    adapter = Lora(jnp.eye(400), jnp.eye(400), jnp.ones(()), jnp.asarray(0.25))
    x = jnp.ones((300, 400))
    zero = jnp.zeros((400, 400))
    seen = adapter.adapt(x, zero, x @ zero, jax.random.key(0))
    assert set(np.unique(seen).round(5)) == {0.0, np.float32(1 / 0.75).round(5)}
    assert float((seen == 0).mean()) == pytest.approx(0.25, abs=0.01)
    np.testing.assert_array_equal(adapter.adapt(x, zero, x @ zero, None), x)


def test_masks_of_dropout_are_independent():
    """Of neighbouring places, of rows, of columns and of keys: two masks agree as chance has it."""
    share = 0.25

    def mask(rows, seed):
        return np.asarray(lora._kept(rows, 640, jnp.float32(share), jax.random.key(seed)))

    one, other = mask((512,), 0), mask((4, 128), 1)
    pairs = {
        "keys": (one, other),
        "neighbours": (one[:, 1:], one[:, :-1]),
        "rows": (one[1:], one[:-1]),
        "far rows": (one[256:], one[:256]),
        "columns": (one[:, 128:], one[:, :-128]),
    }
    chance = share**2 + (1 - share) ** 2
    for name, (first, second) in pairs.items():
        # Five deviations of a mean over so many places.
        bound = 5 * (chance * (1 - chance) / first.size) ** 0.5
        assert abs((first == second).mean() - chance) < bound, name
    for mask in (one, other):
        for axis, size in ((0, 512), (1, 640)):
            kept = mask.mean(axis)
            spread = kept.std() / (share * (1 - share) / size) ** 0.5
            assert spread == pytest.approx(1, abs=0.2)


def test_what_is_dropped_does_not_depend_on_padding():
    few, many = (
        np.asarray(lora._kept((3, size), 8, jnp.float32(0.5), jax.random.key(0))) for size in (5, 9)
    )
    np.testing.assert_array_equal(few.reshape(3, 5, 8), many.reshape(3, 9, 8)[:, :5])


@pytest.mark.slow
def test_dropout_differs_between_layers_and_steps(pair):
    made = pair(NAME)
    variables = busy(add_lora(made.variables, rank=4, key=jax.random.key(1), dropout=0.5))
    tokens = reference.tokens(made.case)

    @jax.jit
    def hidden(seed):
        return made.model.apply(variables, tokens, rngs={"dropout": jax.random.key(seed)})

    assert np.abs(hidden(0) - hidden(1)).max() > 1e-3
    np.testing.assert_array_equal(hidden(0), hidden(0))
    without = made.apply(variables, tokens)
    np.testing.assert_array_equal(without, made.apply(variables, tokens))


@pytest.mark.slow
def test_adapters_work_beside_bfloat16_weights(pair):
    made = pair(NAME)
    model, variables = jaxtune.load(made.directory, dtype="bfloat16", compute="bfloat16")
    variables = busy(add_lora(variables, rank=4, key=jax.random.key(1)))
    logits = model.apply(variables, reference.tokens(made.case))
    assert jnp.isfinite(logits).all()
    assert merge(variables)["params"]["layers"]["attn"]["q"]["w"].dtype == jnp.bfloat16
