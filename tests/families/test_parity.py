"""Every family against live transformers, in float32 and bfloat16, forward and backward."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxtune
from jaxtune import families, tree
from jaxtune.checkpoint.placing import oriented
from jaxtune.families import names
from jaxtune.models.layout import arrange
from tests import reference
from tests.marks import slow_after

# Largest difference of any logit, over the logits' standard deviation. Two float32 forward passes
# that add in different orders reach 1.4e-5 here on the sharpest of these models.
BOUND = 5e-5
ONE_A_FAMILY = {case.config: name for name, case in reference.CASES.items()}


@pytest.fixture
def close(record_property):
    """Assert that logits agree, and record how well."""

    def check(got, want):
        reached = float(np.abs(np.asarray(got) - want).max() / want.std())
        record_property("difference in standard deviations", reached)
        assert reached < BOUND

    return check


@pytest.mark.parametrize("name", reference.EVERY)
def test_logits(pair, name, close):
    made = pair(name)
    tokens = reference.tokens(made.case)
    want = reference.logits(made.reference, tokens)
    close(made.apply(made.variables, tokens), want)


@pytest.mark.parametrize("name", slow_after(1, ["gemma3-seven-layers", "qwen2-tied-windows"]))
def test_padding_in_the_middle(pair, name, close):
    """Tokens past a gap stand where they stood: the reference counts positions through it."""
    made = pair(name)
    tokens = reference.tokens(made.case, seed=6)
    valid = np.ones(tokens.shape, bool)
    valid[:, 9:12] = False
    want = reference.logits(made.reference, tokens, valid)
    got = np.asarray(made.apply(made.variables, tokens, valid=valid))
    close(got[valid], want[valid])


LONG = {
    "llama": reference.Case(
        "LlamaConfig",
        dict(
            rope_parameters=reference.LLAMA3 | dict(original_max_position_embeddings=512),
            max_position_embeddings=4096,
            num_hidden_layers=2,
            head_dim=64,
        ),
        length=3000,
    ),
    "gemma3": reference.Case(
        "Gemma3TextConfig",
        dict(reference.GEMMA3_TOWER, max_position_embeddings=4096, head_dim=128),
        length=3000,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_long_texts(tmp_path, name, close):
    """An error in a frequency's last place shows after thousands of tokens."""
    live = reference.make(LONG[name], tmp_path)
    tokens = reference.tokens(LONG[name], batch=1)
    model, variables = jaxtune.load(tmp_path)
    close(jax.jit(model.apply)(variables, tokens), reference.logits(live, tokens))


@pytest.mark.parametrize("name", reference.EVERY)
def test_packed_and_padded_rows(pair, name, close):
    """In one batch: several texts in a row, and one text with padding on its right."""
    made = pair(name)
    tokens = reference.tokens(made.case, batch=2, seed=2)
    places = np.arange(tokens.shape[1])
    # Unequal parts, the middle one longer than every window, then padding.
    cuts = [0, 5, len(places) - 4, len(places) - 2]
    segments = np.stack([np.searchsorted(cuts, places, side="right") - 1, 0 * places])
    valid = np.stack([segments[0] < 3, places < len(places) - 5])
    tokens[1, ~valid[1]] = 0
    got = np.asarray(made.apply(made.variables, tokens, segments=segments, valid=valid))
    assert np.isfinite(got).all()
    alone = [
        reference.logits(made.reference, tokens[:1, start:stop])[0]
        for start, stop in pairwise(cuts)
    ]
    close(got[0, valid[0]], np.concatenate(alone))
    # A row alone, since the reference sets a longrope's switch by the longest row of a batch.
    padded = reference.logits(made.reference, tokens[1:], valid[1:])[0]
    close(got[1, valid[1]], padded[valid[1]])


@pytest.mark.parametrize("name", slow_after(1, ["gemma-mqa", "llama-llama3"]))
def test_prefix(pair, name, close):
    """A prefix that sees itself whole, with the reference told so by a mask of its own."""
    made = pair(name)
    tokens = reference.tokens(made.case, seed=3)
    causal = np.arange(tokens.shape[1])[None] >= np.array([[7], [3]])
    index = np.arange(tokens.shape[1])
    seen = (index[None, :] <= index[:, None])[None] | ~causal[:, None, :] & ~causal[:, :, None]
    bias = torch.from_numpy(np.where(seen, 0.0, -1e30).astype(np.float32))[:, None]
    with torch.no_grad():
        want = made.reference(input_ids=torch.from_numpy(tokens), attention_mask=bias).logits
    got = made.apply(made.variables, tokens, causal=causal)
    close(got, want.numpy())


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_A_FAMILY.values())
def test_gradients(pair, name, record_property):
    made = pair(name)
    tokens = reference.tokens(made.case, seed=4)
    got = logits_and_gradients(made.model, made.variables, tokens)
    del got["logits"]
    want = torch_gradients(made, tokens)
    for path, gradient in got.items():
        # Relative to the leaf's own size: these are sums over tokens in another order.
        distance = np.linalg.norm(gradient - want[path]) / np.linalg.norm(want[path])
        record_property("relative difference", float(distance))
        assert distance < 1e-4, f"{path}: {distance:.2e}"


def logits_and_gradients(model, variables, tokens) -> dict[str, jax.Array]:
    """Logits, and the gradients of the mean loss of the next token, of every weight by path."""

    def loss(params):
        logits = model.apply({"params": params}, tokens)
        chances = jax.nn.log_softmax(logits[:, :-1])
        own = jnp.take_along_axis(chances, tokens[:, 1:, None], axis=-1)
        return -own.mean(), logits

    (_, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    return {"logits": logits, **tree.flatten(gradients)}


def torch_gradients(made, tokens) -> dict[str, np.ndarray]:
    """Autograd's gradients of the mean next-token loss, carried over by the family's own table."""
    made.reference.zero_grad()
    ids = torch.from_numpy(tokens)
    made.reference(input_ids=ids, labels=ids).loss.backward()
    found = {
        name: weight.grad.numpy()
        for name, weight in made.reference.named_parameters()
        if weight.grad is not None
    }
    _, family, _ = families.read_config(made.directory)
    table = names.choose(family.tables, found)
    shapes = {path: leaf.shape for path, leaf in tree.flatten(made.variables["params"]).items()}
    leaves = names.by_leaf(names.pieces(table, shapes))
    views = {
        path: [oriented(found.__getitem__, piece) for piece in parts]
        for path, parts in leaves.items()
    }
    return {
        path: np.stack(layers) if leaves[path][0].layer is not None else layers[0]
        for path, layers in views.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_A_FAMILY.values())
def test_bfloat16(pair, name, tmp_path, record_property):
    """Our bfloat16 is no further from the float32 truth than 1.5 times the reference's own."""
    case = pair(name).case
    exact = reference.make(case, tmp_path / "unrounded", seed=5).bfloat16()
    exact.save_pretrained(tmp_path / "stored")
    tokens = reference.tokens(case, batch=4, seed=5)
    rounded = reference.logits(exact, tokens)
    truth = reference.logits(exact.float(), tokens)
    model, variables = jaxtune.load(tmp_path / "stored", "bfloat16", compute="bfloat16")
    got = np.asarray(jax.jit(model.apply)(variables, tokens))

    def error(found):
        return np.sqrt(np.square(found - truth).mean())

    record_property("error over the reference's", float(error(got) / error(rounded)))
    assert 0 < error(got) < 1.5 * error(rounded)


GEMMA_3_270M = dict(
    vocab_size=262_144,
    hidden_size=640,
    intermediate_size=2048,
    num_hidden_layers=18,
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=256,
    query_pre_attn_scalar=256,
    sliding_window=512,
    max_position_embeddings=32_768,
)


@pytest.mark.slow
def test_gemma_3_270m_at_its_true_shape(tmp_path, close):
    case = reference.Case("Gemma3TextConfig", GEMMA_3_270M, length=560)
    live = reference.make(case, tmp_path)
    tokens = reference.tokens(case, batch=1)
    scored = np.array([0, 100, 511, 512, 513, 559])  # either side of the window
    with torch.no_grad():
        kept = live(input_ids=torch.from_numpy(tokens), logits_to_keep=torch.from_numpy(scored))
    del live
    model, variables = jaxtune.load(tmp_path)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 268_098_176

    def chosen(variables, tokens):
        x = model.apply(variables, tokens, method="embed")
        hidden = model.apply(variables, x, arrange(tokens.shape), method="hidden")
        return model.apply(variables, hidden[:, scored], method="logits")

    # The bound of the tiny models: this one's softer attention more than makes up for its depth.
    close(jax.jit(chosen)(variables, tokens), kept.logits.numpy())
