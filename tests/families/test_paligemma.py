"""PaliGemma against live transformers and, where it is installed, big_vision itself."""

import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest
import torch

import jaxtune
from jaxtune import tree
from jaxtune.checkpoint.formats.tensors import CheckpointError
from tests import devices, pictured
from tests.families.paligemma_cases import BOTH, BOUND, NAMES, ours
from tests.marks import slow_after


@pytest.mark.parametrize("name", slow_after(1, NAMES))
def test_logits(seen, name, record_property):
    made, given = seen(name), pictured.rows()
    with torch.no_grad():
        want = made.reference(**pictured.inputs(given)).logits.numpy()[given.valid]
    reached = np.abs(ours(made, given)[given.valid] - want).max() / want.std()
    record_property("difference in standard deviations", float(reached))
    assert reached < BOUND


@pytest.mark.slow
def test_text_alone(seen):
    """Without pictures it is its decoder."""
    made = seen("paligemma")
    tokens = np.random.default_rng(0).integers(3, 97, (2, 12))
    inner = made.model.clone().bind(made.variables).llm
    alone = inner.clone(parent=None, name=None)
    want = alone.apply({"params": made.variables["params"]["llm"]}, tokens)
    np.testing.assert_allclose(made.model.apply(made.variables, tokens), want, atol=1e-5)


@pytest.mark.parametrize("name", slow_after(0, BOTH))
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


@pytest.mark.parametrize("dtype", slow_after(0, ["bfloat16", "float16", "float32"]))
@pytest.mark.parametrize("name", slow_after(1, BOTH[::-1]))
def test_npz_to_hugging_face_and_back(seen, archive, tmp_path, name, dtype):
    """Byte for byte; and transformers computes with it what it did."""
    file = archive(name, dtype)
    model, variables = jaxtune.load(file, "auto")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(variables)} == {dtype}
    jaxtune.save_merged(model, variables, tmp_path / "hf")
    again = jaxtune.save_merged(*jaxtune.load(tmp_path / "hf"), tmp_path / "b.npz")
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
        r"shape \(56, 56, 3\); expected \[59, 59, 3\]",
    ),
    "tokens without a picture": (dict(prompts=[[97] * 16 + [3]]), "16 picture tokens"),
    "too few tokens": (
        dict(prompts=[[97] * 3 + [3]], images=[np.zeros((59, 59, 3))]),
        "3 picture tokens .*, but 1 pictures of 16",
    ),
    "a picture for one of two": (
        dict(prompts=[[3], [4]], images=[np.zeros((59, 59, 3))]),
        "found 1 sets of images for 2 prompts",
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
    with pytest.raises(CheckpointError, match=r"array params/llm/embedder.* is missing: expected"):
        jaxtune.load(tmp_path / "other.npz")
    name = "params/llm/layers/pre_ffw_norm/scale"
    np.savez(tmp_path / "shape.npz", **arrays | {name: arrays[name][:, :-1]})
    with pytest.raises(CheckpointError, match=r"pre_ffw_norm/scale is \(4, 31\)"):
        jaxtune.load(tmp_path / "shape.npz")
    text = pair("gemma-mqa")
    with pytest.raises(ValueError, match=r"only PaliGemma can be written as \.npz"):
        jaxtune.save_merged(text.model, text.variables, tmp_path / "text.npz")
