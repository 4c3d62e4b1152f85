"""The outline of a checkpoint: what loading it would give, with shapes in place of arrays."""

import json
import shutil
from pathlib import Path

import jax
import pytest
from safetensors.numpy import load_file, save_file

import jaxtune
from jaxtune.checkpoint import load as loading
from jaxtune.checkpoint.formats.tensors import Tensors
from jaxtune.display.errors import UserError
from tests.marks import slow_after

NAME = "llama-linear"


def outline(directory: Path, **options):
    return loading.outline(loading.describe(directory), **options)


def alike(shapes, leaves) -> bool:
    """Whether shapes are those of leaves, in equal trees, with equal dtypes, placed alike."""
    assert jax.tree.structure(shapes) == jax.tree.structure(leaves)
    assert {type(leaf) for leaf in jax.tree.leaves(shapes)} == {jax.ShapeDtypeStruct}
    return all(
        (one.shape, one.dtype) == (two.shape, two.dtype)
        and one.sharding.is_equivalent_to(two.sharding, one.ndim)
        for one, two in zip(*map(jax.tree.leaves, (shapes, leaves)), strict=True)
    )


def check(directory: Path, **options) -> None:
    """An outline is the model that loading gives, with leaves of the same kinds."""
    model, variables = jaxtune.load(directory, **options)
    described, shapes = outline(directory, **options)
    assert described == model and hash(described) == hash(model)
    assert alike(shapes, variables)


@pytest.mark.parametrize(
    "options",
    slow_after(
        3,
        [
            {},
            dict(dtype="bfloat16", compute="bfloat16", attention="plain"),
            dict(quant="nf4-double", dtype="float16"),
            dict(quant="nf4"),
            dict(quant=[("layers/mlp/.*/w", "int8"), (".*", None)]),
        ],
    ),
    ids=str,
)
@pytest.mark.parametrize("name", slow_after(1, [NAME, "llama-mqa-tied-biased", "phi3-window"]))
def test_an_outline_is_what_loading_gives(pair, name, options):
    check(pair(name).directory, mesh=jaxtune.make_mesh({"fsdp": -1}), **options)


def test_without_a_mesh_too(pair):
    check(pair(NAME).directory)


def test_an_outline_believes_a_head_that_is_stored(pair, tmp_path):
    """As loading does: tensors that differ overrule a config that ties them."""
    directory = shutil.copytree(pair(NAME).directory, tmp_path / "untied")
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tie_word_embeddings": True}))
    check(directory)
    assert not outline(directory)[0].config.tied
    tensors = load_file(directory / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    check(directory)
    assert outline(directory)[0].config.tied


def test_no_weight_is_read(pair, monkeypatch):
    for kind in (Tensors, *Tensors.__subclasses__()):
        monkeypatch.setattr(kind, "read", lambda *_: pytest.fail("a weight was read"))
    _, variables = outline(pair(NAME).directory, quant="nf4")
    assert len(jax.tree.leaves(variables)) > 10
    with pytest.raises(pytest.fail.Exception):
        jaxtune.load(pair(NAME).directory)


@pytest.mark.parametrize(
    "options, problem",
    [
        (dict(attention="flash"), "attention 'flash': expected one of"),
        (dict(compute="float8"), "compute 'float8': expected one of"),
        (dict(compute="float16", precision="tf32"), "leave precision out, or set compute"),
        (dict(dtype="int8"), "dtype 'int8': expected one of"),
    ],
)
def test_settings_that_loading_refuses_are_refused(pair, options, problem):
    with pytest.raises(UserError, match=problem):
        outline(pair(NAME).directory, **options)
    with pytest.raises(UserError, match=problem):
        jaxtune.load(pair(NAME).directory, **options)


CODE = """
    import jax
    from pathlib import Path
    import jaxtune
    from tests.checkpoint.test_load_outline import check, outline

    for axes in ({"fsdp": 4}, {"fsdp": 2, "tensor": 2}):
        for quant in (None, "nf4-double"):
            check(Path(DIRECTORY), mesh=jaxtune.make_mesh(axes), quant=quant)
            _, shapes = outline(Path(DIRECTORY), mesh=jaxtune.make_mesh(axes), quant=quant)
            split = [leaf.sharding.shard_shape(leaf.shape) != leaf.shape
                     for leaf in jax.tree.leaves(shapes)]
            assert any(split)
    print("agreed")
"""


@pytest.mark.slow
def test_an_outline_on_several_devices(pair):
    from tests import devices
    from tests.checkpoint.test_load import python

    code = CODE.replace("DIRECTORY", repr(str(pair("phi3-window").directory)))
    assert "agreed" in python(code, **devices.environment(4))
