"""PaliGemma trained: gradients against live transformers, steps against the same by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import jaxtune
from jaxtune import tree
from jaxtune.data.batches import Batch
from tests import pictured
from tests.families.paligemma_cases import BOTH, BOUND, ours
from tests.marks import slow_after


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_after(1, BOTH))
def test_gradients(seen, name):
    """Of the suffix's loss, in the decoder, the projector and the tower."""
    made, given = seen(name), pictured.rows(seed=3)
    scored = given.valid & given.causal

    def loss(params):
        logits = made.model.apply(
            {"params": params},
            given.tokens,
            given.images,
            valid=given.valid,
            causal=given.causal,
        )
        chances = jax.nn.log_softmax(logits[:, :-1])
        targets = np.where(scored, given.tokens, 0)[:, 1:, None]
        return -(jnp.take_along_axis(chances, targets, axis=-1)[..., 0] * scored[:, 1:]).sum()

    got = tree.flatten(jax.jit(jax.grad(loss))(made.variables["params"]))
    made.reference.zero_grad()
    labels = torch.from_numpy(np.where(scored, given.tokens, -100).astype(np.int64))
    theirs = made.reference(**pictured.inputs(given)).logits
    torch.nn.functional.cross_entropy(
        theirs[:, :-1].reshape(-1, 97), labels[:, 1:].reshape(-1), reduction="sum"
    ).backward()
    model = made.reference.model
    want = {
        "llm/layers/attn/q/w": [each.self_attn.q_proj for each in model.language_model.layers],
        "img/layers/mlp/up/w": [each.mlp.fc1 for each in model.vision_tower.encoder.layers],
    }
    for path, layers in want.items():
        stacked = torch.stack([layer.weight.grad.T for layer in layers]).numpy()
        # The gradient check of text models has the same bound: sums of many float32 terms.
        assert np.abs(got[path] - stacked).max() < 1e-4 * np.abs(stacked).max()
    patches = model.vision_tower.embeddings.patch_embedding.weight.grad.permute(2, 3, 1, 0).numpy()
    assert np.abs(got["img/patches/w"] - patches).max() < 1e-4 * np.abs(patches).max()


def batch(given: pictured.Rows) -> Batch:
    """Rows as a step takes them, every row's loss its mean."""
    scored = given.valid & given.causal
    width = int(scored.sum(axis=1).max())
    where, targets = (np.zeros((len(scored), width), np.int32) for _ in range(2))
    weights = np.zeros((len(scored), width), np.float32)
    for row, line in enumerate(scored):
        places = np.flatnonzero(line)
        where[row, : len(places)] = places - 1
        targets[row, : len(places)] = given.tokens[row, places]
        weights[row, : len(places)] = 1 / len(places)
    return Batch(
        tokens=given.tokens,
        positions=None,
        segments=None,
        valid=given.valid,
        causal=given.causal,
        where=where,
        targets=targets,
        weights=weights,
        images=given.images[:, None],
    )


ATTENTION = [(r"params/llm/layers/attn/.*", True), (r".*", False)]


@pytest.mark.slow
def test_ten_steps_of_attention_alone(seen):
    """As the same update by hand; nothing else moves, to the bit."""
    made = seen("paligemma")
    batches = [batch(pictured.rows(seed)) for seed in range(10)]
    before = {path: np.array(leaf) for path, leaf in tree.flatten(made.variables).items()}
    optimizer = optax.sgd(0.03)
    state = jaxtune.TrainState.create(made.variables, trainable=ATTENTION, optimizer=optimizer)
    losses = []
    for each in batches:
        state, metrics = jaxtune.train_step(made.model, optimizer, state, each)
        losses.append(float(metrics["loss"]))

    def loss(attention, each):
        params = made.variables["params"]
        llm = params["llm"] | {"layers": params["llm"]["layers"] | {"attn": attention}}
        layout = dict(valid=each.valid, causal=each.causal)
        variables = {"params": params | {"llm": llm}}
        logits = made.model.apply(variables, each.tokens, each.images, **layout)
        picked = jnp.take_along_axis(logits, each.where[..., None], axis=1)
        chances = jax.nn.log_softmax(picked)
        own = jnp.take_along_axis(chances, each.targets[..., None], axis=-1)[..., 0]
        return -(own * each.weights).sum() / each.weights.sum()

    attention, by_hand = made.variables["params"]["llm"]["layers"]["attn"], []
    step = jax.jit(jax.value_and_grad(loss))
    for each in batches:
        value, gradients = step(attention, each)
        by_hand.append(float(value))
        attention = jax.tree.map(lambda w, g: w - 0.03 * g, attention, gradients)

    np.testing.assert_allclose(losses, by_hand, rtol=1e-5)  # float32, in another order
    after = tree.flatten(state.variables)
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed == {path for path in before if path.startswith("params/llm/layers/attn/")}
    for path, leaf in tree.flatten(attention).items():
        tuned = after[f"params/llm/layers/attn/{path}"]
        np.testing.assert_allclose(tuned, leaf, atol=1e-5)


@pytest.mark.slow
def test_names_of_targets_leave_the_tower_alone(seen):
    """Adapters and codes go to the decoder; the tower has some where patterns name it."""
    made = seen("paligemma")
    key = jax.random.key(0)
    for targets in ("all-linear", "attention"):
        adapted = jaxtune.add_lora(made.variables, rank=2, alpha=4, targets=targets, key=key)
        assert set(adapted["lora"]) == {"llm"}
    named = jaxtune.add_lora(
        made.variables, rank=2, alpha=4, targets=[r"img/layers/attn/[qv]/w"], key=key
    )
    assert set(named["lora"]) == {"img"}
    _, variables = jaxtune.load(made.directory, quant="nf4")
    kinds = {path for path, leaf in tree.flatten(variables).items() if leaf.dtype == jnp.uint8}
    assert kinds and all(path.startswith("params/llm/layers/") for path in kinds)


@pytest.mark.slow
@pytest.mark.parametrize("quant", [None, "nf4"])
def test_adapters(seen, tmp_path, quant):
    """LoRA and QLoRA learn, and what is saved does under live PEFT what it does here."""
    from peft import PeftModel

    made, each = seen("paligemma"), batch(pictured.rows())
    model, variables = jaxtune.load(made.directory, quant=quant)
    variables = jaxtune.add_lora(
        variables, rank=4, alpha=8, targets="all-linear", key=jax.random.key(0)
    )
    optimizer = optax.adam(1e-2)
    state = jaxtune.TrainState.create(variables, optimizer=optimizer)
    losses = []
    for _ in range(5):
        state, metrics = jaxtune.train_step(model, optimizer, state, each)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.9 * losses[0]
    saved = jaxtune.save_adapter(state.variables, tmp_path / "adapter", base=made.directory)
    again = jaxtune.load_adapter(model, {"params": state.variables["params"]}, saved)
    assert jax.tree.all(jax.tree.map(np.array_equal, again["lora"], state.variables["lora"]))
    if quant is None:
        given = pictured.rows(seed=8)
        fresh = made.reference.from_pretrained(made.directory, attn_implementation="eager")
        with torch.no_grad():
            want = PeftModel.from_pretrained(fresh, saved)(**pictured.inputs(given)).logits.numpy()
        want, got = want[given.valid], ours(made, given, state.variables)[given.valid]
        assert np.abs(got - want).max() < BOUND * want.std()


@pytest.mark.slow
def test_merging_a_quantised_base_reads_the_npz(seen, archive, tmp_path):
    """Into the original weights, whichever layout is read and whichever written."""
    file = archive("paligemma2", "float32")
    model, variables = jaxtune.load(file, quant="nf4")
    full = tree.flatten(jaxtune.load(file)[1])
    for target in (tmp_path / "hf", tmp_path / "a.npz"):
        jaxtune.save_merged(model, variables, target, "float32")
        merged = tree.flatten(jaxtune.load(target)[1])
        assert all(np.array_equal(merged[path], full[path]) for path in full)
