"""Checkpoints that tests of `inspect` share."""

import functools
import shutil

import pytest

from tests import reference, tiny
from tests.checkpoint import test_hub
from tests.checkpoint.formats import test_bnb

server = test_hub.server  # the fixtures
saved = test_bnb.saved


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """`made("llama-linear")` is that case's directory and transformers model, made once."""

    @functools.cache
    def make(name):
        directory = tmp_path_factory.mktemp(name)
        return directory, reference.make(reference.CASES[name], directory)

    return make


@pytest.fixture
def llama(made, tmp_path):
    """A Llama checkpoint of one's own, to spoil."""
    return shutil.copytree(made("llama-linear")[0], tmp_path / "llama")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny checkpoint with a tokenizer, of linear maps that give blocks of every sort."""
    return tiny.write_base(tmp_path_factory.mktemp("base"), hidden_size=64, vocab_size=1024)
