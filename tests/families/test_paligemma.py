"""PaliGemma against live transformers and, where it is installed, big_vision itself."""

import functools
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import jaxtune
from jaxtune import tree
from jaxtune.checkpoint.formats.tensors import CheckpointError
from jaxtune.data.batches import Batch
from tests import devices, pictured
from tests.conftest import Pair
from tests.marks import slow_after

# As for text models: two float32 forward passes that add in different orders.
BOUND = 5e-5
NAMES = list(pictured.TEXTS)
BOTH = NAMES[:2]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """`seen("paligemma2")` is that reference, made and loaded once."""

    @functools.cache
    def make(name: str) -> Pair:
        directory = tmp_path_factory.mktemp(name)
        model = pictured.make(name, directory)
        return Pair(None, directory, model, *jaxtune.load(directory))

    return make


@pytest.fixture(scope="module")
def archive(seen, tmp_path_factory):
    """`archive("paligemma", "float16")` is the .npz of a reference."""

    @functools.cache
    def make(name: str, dtype: str):
        made = seen(name)
        file = tmp_path_factory.mktemp("npz") / f"{name}.{dtype}.npz"
        return jaxtune.save_merged(made.model, made.variables, file, dtype)

    return make


def ours(made, given, variables=None):
    variables = made.variables if variables is None else variables
    found = made.apply(
        variables, given.tokens, given.images, valid=given.valid, causal=given.causal
    )
    return np.asarray(found)


@pytest.mark.parametrize("name", NAMES)
def test_logits(seen, name, record_property):
    made, given = seen(name), pictured.rows()
    with torch.no_grad():
        want = made.reference(**pictured.inputs(given)).logits.numpy()[given.valid]
    reached = np.abs(ours(made, given)[given.valid] - want).max() / want.std()
    record_property("difference in standard deviations", float(reached))
    assert reached < BOUND


def test_text_alone(seen):
    """Without pictures it is its decoder."""
    made = seen("paligemma")
    tokens = np.random.default_rng(0).integers(3, 97, (2, 12))
    inner = made.model.clone().bind(made.variables).llm
    alone = inner.clone(parent=None, name=None)
    want = alone.apply({"params": made.variables["params"]["llm"]}, tokens)
    np.testing.assert_allclose(made.model.apply(made.variables, tokens), want, atol=1e-5)


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


@pytest.mark.parametrize("name", slow_after(1, BOTH))
def test_captions(seen, name):
    """Greedy answers of unequal prompts together are those of transformers, one by one."""
    made = seen(name)
    given = [pictured.rows(seed, (prefix,), (0,), 30) for seed, prefix in enumerate((5, 2, 9))]
    prompts = [each.tokens[0][each.valid[0]].tolist() for each in given]
    images = [each.images[0] for each in given]
    got = jaxtune.generate(made.model, made.variables, prompts, 16, images=images, stops=[1])
    bare = [prompt[pictured.PATCHES :] for prompt in prompts]  # their picture tokens come before
    assert got == jaxtune.generate(made.model, made.variables, bare, 16, images=images, stops=[1])
    for prompt, image, answer in zip(prompts, images, got, strict=True):
        ids = torch.tensor([prompt])
        with torch.no_grad():
            want = made.reference.generate(
                input_ids=ids,
                pixel_values=torch.from_numpy(image[None]).permute(0, 3, 1, 2),
                attention_mask=torch.ones_like(ids),
                token_type_ids=torch.zeros_like(ids),
                max_new_tokens=16,
                do_sample=False,
                eos_token_id=1,
            )
        assert answer == want[0, len(prompt) :].tolist()


@pytest.mark.parametrize("dtype", slow_after(1, ["bfloat16", "float16", "float32"]))
@pytest.mark.parametrize("name", slow_after(1, BOTH[::-1]))
def test_npz_to_hugging_face_and_back(seen, archive, tmp_path, name, dtype):
    """Byte for byte; and transformers computes with it what it did."""
    file = archive(name, dtype)
    model, variables = jaxtune.load(file, "auto")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(variables)} == {dtype}
    jaxtune.save_merged(model, variables, tmp_path / "hf", None)
    again = jaxtune.save_merged(*jaxtune.load(tmp_path / "hf", "auto"), tmp_path / "b.npz", None)
    first, second = np.load(file), np.load(again)
    assert set(first.files) == set(second.files)
    for key in first.files:
        assert first[key].dtype == second[key].dtype and first[key].shape == second[key].shape
        assert first[key].tobytes() == second[key].tobytes()
    if dtype == "float32":
        made, given = seen(name), pictured.rows()
        reread = made.reference.from_pretrained(tmp_path / "hf", attn_implementation="eager")
        with torch.no_grad():
            both = [m(**pictured.inputs(given)).logits for m in (reread.eval(), made.reference)]
        assert torch.equal(*both)


@pytest.mark.slow
def test_what_is_read_from_shapes(seen, archive):
    """All that a config would say of the model, but its limits that no array tells."""
    for name in BOTH:
        want = seen(name).model
        model, variables = jaxtune.load(archive(name, "float32"))
        untold = dict(context=want.config.context, layers=want.config.layers)
        # big_vision's PaliGemma 2 knows no windows.
        assert {kind.window for kind in model.config.layers} == {None}
        assert replace(model.config, **untold) == want.config
        assert (model.pictures.tower.side, model.pictures.tokens) == (56, 16)
        given = pictured.rows()
        cropped = given.images[:, :56, :56]
        got = model.clone(config=want.config).apply(
            variables, given.tokens, cropped, valid=given.valid, causal=given.causal
        )
        np.testing.assert_allclose(got, ours(seen(name), given), atol=1e-4)  # jitted and not


def test_big_vision_computes_the_same(archive, monkeypatch):
    """Its own model on our file, where a person has it on the path."""
    pytest.importorskip("big_vision.models.proj.paligemma.paligemma")
    from big_vision.models.ppp import gemma
    from big_vision.models.proj.paligemma import paligemma
    from ml_collections import ConfigDict

    sizes = dict(width=32, depth=4, mlp_dim=64, num_heads=4, head_dim=16, norm_eps=1e-6)
    second = dict(num_kv_heads=2, attn_logits_softcap=50.0, post_norms=True)
    for name, more in (("paligemma", dict(num_kv_heads=1)), ("paligemma2", second)):
        config = dict(variant="tiny", vocab_size=97, scan=True, remat_policy="none")
        monkeypatch.setattr(
            gemma, "get_config", lambda variant, found=sizes | config | more: ConfigDict(found)
        )
        tower = dict(width=24, depth=3, mlp_dim=40, num_heads=2, patch_size=(14, 14))
        theirs = paligemma.Model(
            llm=dict(vocab_size=97, variant="tiny"),
            img=dict(**tower, pool_type="none", scan=True, head_zeroinit=False),
        )
        arrays = np.load(archive(name, "float32"))
        params = tree.unflatten({key.removeprefix("params/"): arrays[key] for key in arrays.files})
        model, variables = jaxtune.load(archive(name, "float32"))
        given = pictured.rows(prefixes=(5, 5, 5), suffixes=(9, 9, 9), length=30)
        images = given.images[:, :56, :56]
        text, causal = given.tokens[:, 16:], given.causal[:, 16:]
        want, _ = theirs.apply({"params": params}, images, text, causal.astype(np.int32))
        got = model.apply(variables, given.tokens, images, causal=given.causal)[:, 16:]
        assert np.abs(got - want).max() < BOUND * np.std(want)


def test_what_sees_what(seen):
    """A suffix changes nothing before it; a prefix or a pixel changes all of the row."""
    made, given = seen("paligemma2"), pictured.rows()
    start = pictured.PATCHES + 5  # where the first row's suffix begins
    base = ours(made, given)

    def moved(**change):
        other = ours(made, replace(given, **change))
        assert np.array_equal(other[1:], base[1:])  # the other rows
        return np.abs(other - base)[0].max(axis=-1) > 0

    def token(place):
        tokens = given.tokens.copy()
        tokens[0, place] = tokens[0, place] % 90 + 4
        return tokens

    late = moved(tokens=token(start + 2))
    assert not late[: start + 2].any() and late[start + 2 : start + 6].all()
    assert moved(tokens=token(start - 2))[: start + 6].all()
    images = given.images.copy()
    images[0, 30, 30] *= -1
    assert moved(images=images)[: start + 6].all()


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
    kinds = {path for path, leaf in tree.flatten(variables).items() if leaf.dtype == jnp.uint4}
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


@pytest.mark.slow
def test_on_eight_devices(seen):
    """Sharded, and quantised as well, logits and answers are those of one device."""
    code = f"""
import jax, jaxtune, numpy as np
from tests import pictured
given = pictured.rows(prefixes=(5, 3, 7, 2) * 2, suffixes=(6,) * 8, length=32)
prompts = [row[valid].tolist() for row, valid in zip(given.tokens, given.valid & ~given.causal)]
assert len(jax.devices()) == 8
for quant, axes in ((None, dict(data=2, fsdp=2, tensor=2)), ("nf4", dict(fsdp=8))):
    found = []
    for mesh in (None, jaxtune.make_mesh(axes)):
        model, variables = jaxtune.load({str(seen("paligemma2").directory)!r}, "float32", quant,
                                        mesh=mesh)
        logits = jax.jit(model.apply)(variables, given.tokens, given.images, valid=given.valid,
                                      causal=given.causal)
        answers = jaxtune.generate(model, variables, prompts, 8, images=list(given.images))
        found.append((np.asarray(logits)[given.valid], answers))
    (expected, wanted), (logits, answers) = found
    assert answers == wanted
    assert np.abs(logits - expected).max() < 1e-4 * expected.std()
"""
    subprocess.run([sys.executable, "-c", code], env=devices.environment(8), check=True)


BAD = {
    "no text": (dict(prompts=[[]], images=[np.zeros((59, 59, 3))]), "is empty"),
    "pictures of another size": (
        dict(prompts=[[3]], images=[np.zeros((56, 56, 3))]),
        r"shape \(56, 56, 3\); \[59, 59, 3\]",
    ),
    "tokens without a picture": (dict(prompts=[[97] * 16 + [3]]), "16 picture tokens"),
    "too few tokens": (
        dict(prompts=[[97] * 3 + [3]], images=[np.zeros((59, 59, 3))]),
        "3 picture tokens .* for 1 pictures of 16",
    ),
    "a picture for one of two": (
        dict(prompts=[[3], [4]], images=[np.zeros((59, 59, 3))]),
        "2 prompts have 1 sets",
    ),
    "an unknown token": (dict(prompts=[[98]]), "outside the vocabulary"),
}


@pytest.mark.parametrize("case", BAD)
def test_prompts_that_are_refused(seen, case):
    given, message = BAD[case]
    made = seen("paligemma")
    with pytest.raises(ValueError, match=message):
        jaxtune.generate(made.model, made.variables, **given)


def test_files_that_are_refused(seen, archive, pair, tmp_path):
    arrays = dict(np.load(archive("paligemma", "float32")))
    without = {name: each for name, each in arrays.items() if "kv_einsum" not in name}
    np.savez(tmp_path / "without.npz", **without)
    with pytest.raises(CheckpointError, match="kv_einsum/w is missing"):
        jaxtune.load(tmp_path / "without.npz")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(CheckpointError, match="no array params/llm/embedder"):
        jaxtune.load(tmp_path / "other.npz")
    name = "params/llm/layers/pre_ffw_norm/scale"
    np.savez(tmp_path / "shape.npz", **arrays | {name: arrays[name][:, :-1]})
    with pytest.raises(CheckpointError, match=r"pre_ffw_norm/scale is \(4, 31\)"):
        jaxtune.load(tmp_path / "shape.npz")
    text = pair("gemma-mqa")
    with pytest.raises(ValueError, match="text model is written as a directory"):
        jaxtune.save_merged(text.model, text.variables, tmp_path / "text.npz")
