"""Outlines of adapters: the shapes of those that a run adds or continues."""

import pytest

import jaxtune
from jaxtune.assembly import weights
from jaxtune.checkpoint.load import describe, outline
from jaxtune.config.training_sections import Model, Trainable
from jaxtune.display.errors import UserError
from tests.checkpoint.peft.adapters import adapted
from tests.checkpoint.test_load_outline import alike
from tests.marks import slow_after

NAME = "llama-linear"
TARGETS = ("layers/attn/[qv]/w", "layers/mlp/up/w")


@pytest.fixture(scope="module")
def mesh():
    return jaxtune.make_mesh({"data": 1, "fsdp": -1, "tensor": 1})


def check(given: Trainable, directory, mesh, **options) -> dict:
    """The outline of adapters is what `with_adapters` gives; returns the shapes."""
    model, variables = jaxtune.load(directory, mesh=mesh, **options)
    model, variables = weights.with_adapters(given, model, variables, mesh, seed=0)
    base = outline(describe(directory), mesh=mesh, **options)
    described, shapes = weights.outline_adapters(given, *base, mesh)
    assert described == model
    assert alike(shapes, variables)
    return shapes


@pytest.mark.parametrize(
    "given, options",
    slow_after(
        1,
        [
            (dict(rank=4), {}),
            (dict(rank=4, variant="dora"), {}),
            (dict(rank=4, variant="rslora"), dict(quant="nf4-double")),
            (dict(rank=4, init="pissa"), {}),  # changes the weights as well
        ],
    ),
    ids=str,
)
def test_new_adapters(pair, mesh, given, options):
    made = Trainable(kind="lora", targets=TARGETS, **given)
    shapes = check(made, pair(NAME).directory, mesh, **options)
    assert shapes["lora"]["layers"]["attn"]["q"]["w"].a.shape[-1] == 4


@pytest.mark.parametrize("variant", ["lora", "dora"])
def test_an_adapter_that_goes_on_training(pair, mesh, variant, tmp_path):
    made = pair(NAME)
    busy = adapted(made, rank=3, variant=variant, targets=list(TARGETS))
    directory = jaxtune.save_adapter(busy, tmp_path / "adapter", made.directory)
    given = Trainable(kind="lora", adapter=str(directory), rank=3, alpha=6, variant=variant)
    shapes = check(given, made.directory, mesh)
    leaf = shapes["lora"]["layers"]["mlp"]["up"]["w"]
    assert leaf.a.shape[-1] == 3 and (leaf.magnitude is not None) == (variant == "dora")


def test_what_no_run_can_add_is_refused_before_weights_are_read(pair, mesh):
    base = outline(describe(pair(NAME).directory), quant="nf4", mesh=mesh)
    with pytest.raises(UserError, match="init='pissa' subtracts the adapter from the weights"):
        weights.outline_adapters(Trainable(targets=TARGETS, init="pissa"), *base, mesh)


def test_without_adapters_the_base_is_all(pair, mesh):
    assert "lora" not in check(Trainable(kind="full"), pair(NAME).directory, mesh)


def test_the_base_is_outlined_as_it_is_loaded(pair, mesh):
    given = Model(path=str(pair(NAME).directory), quant="nf4", remat="dots", attention="plain")
    model, variables = weights.load_base(given, pair(NAME).directory, mesh)
    described, shapes = weights.outline_base(given, describe(pair(NAME).directory), mesh)
    assert described == model and described.remat == "dots"
    assert alike(shapes, variables)
