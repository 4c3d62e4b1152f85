"""Checkpoints in object stores: copies of what is needed, and headers without the weights."""

import jax
import pytest

import jaxtune
from jaxtune.checkpoint import load
from jaxtune.checkpoint.formats.safetensors import CheckpointError
from jaxtune.checkpoint.sources import locate, locate_headers, locate_tokenizer
from jaxtune.files.store import Store
from tests.objects import put

URL = "faulty://models/base"
WEIGHTS = "model.safetensors"


@pytest.fixture
def there(objects, machine, base):
    Store(put(URL, base)).write("optimizer.bin", b"large, and not needed")
    return URL


def test_a_checkpoint_loads_as_from_a_disk(there, base):
    _, variables = jaxtune.load(there)
    expected = jaxtune.load(base)[1]
    assert jax.tree.all(jax.tree.map(lambda one, two: (one == two).all(), variables, expected))
    assert not (locate(there) / "optimizer.bin").exists()


def test_headers_are_read_without_the_weights(there, base, objects):
    directory, headers = locate_headers(there)
    found, expected = load.describe(directory, headers), load.describe(base)
    assert (found.model, found.raw) == (expected.model, expected.raw)
    tensors = {name: (each.shape, each.dtype) for name, each in found.stored.tensors.items()}
    assert tensors == {
        name: (each.shape, each.dtype) for name, each in expected.stored.tensors.items()
    }
    assert not (directory / WEIGHTS).exists()


def test_a_tokenizer_comes_without_weights(there):
    names = {each.name for each in locate_tokenizer(there).iterdir()}
    assert "tokenizer.json" in names or "tokenizer.model" in names
    assert WEIGHTS not in names


def test_what_is_not_there_is_one_message(there):
    with pytest.raises(CheckpointError, match="faulty://models/none: no such object or folder"):
        locate("faulty://models/none")
