"""Checkpoints and adapters that are saved to an object store, and what they may replace."""

import jax
import pytest

import jaxtune
from jaxtune.checkpoint.formats.safetensors import CheckpointError
from jaxtune.files.store import Store, StoreError
from tests.checkpoint.peft.adapters import busy
from tests.objects import Killed, names, nth

URL = "faulty://out/x"


@pytest.fixture
def tuned(objects, machine, base):
    model, variables = jaxtune.load(base)
    return model, busy(jaxtune.add_lora(variables, rank=2, key=jax.random.key(0)))


@pytest.mark.slow
def test_a_model_and_an_adapter_load_again(tuned, base):
    model, variables = tuned
    assert jaxtune.save_adapter(variables, URL, base) == URL
    again = jaxtune.load_adapter(model, jaxtune.load(base)[1], URL)
    alike = jax.tree.map(lambda one, two: (one == two).all(), again["lora"], variables["lora"])
    assert jax.tree.all(alike)
    assert jaxtune.save_merged(model, variables, "faulty://out/merged/") == "faulty://out/merged"
    jaxtune.load("faulty://out/merged")


def test_what_is_there_is_replaced_only_on_request_and_if_it_is_a_checkpoint(tuned, base):
    _, variables = tuned
    Store(URL).write("adapter_config.json", b"{}")
    Store(URL).write("adapter_model-1.safetensors", b"stale")
    with pytest.raises(CheckpointError, match=f"{URL} already exists: .*overwrite=True"):
        jaxtune.save_adapter(variables, URL, base)
    jaxtune.save_adapter(variables, URL, base, overwrite=True)
    assert names(URL) == ["adapter_config.json", "adapter_model.safetensors"]
    Store(URL).write("thesis/1.tex", b"")
    with pytest.raises(CheckpointError, match="does not look like a checkpoint"):
        jaxtune.save_adapter(variables, URL, base, overwrite=True)
    assert "thesis/1.tex" in names(URL)


def test_one_that_was_cut_off_is_refused_and_then_replaced(tuned, base, objects):
    model, variables = tuned
    objects.fault = nth(4, Killed)
    with pytest.raises(StoreError):
        jaxtune.save_adapter(variables, URL, base)
    objects.fault = lambda request, path: None
    with pytest.raises(StoreError, match=f"{URL} is not complete"):
        jaxtune.load_adapter(model, jaxtune.load(base)[1], URL)
    jaxtune.save_adapter(variables, URL, base)
    assert names(URL) == ["adapter_config.json", "adapter_model.safetensors"]
