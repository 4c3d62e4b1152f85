"""PaliGemma references and their archives, each made once a module."""

import functools

import pytest

import jaxtune
from tests import pictured
from tests.conftest import Pair


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
