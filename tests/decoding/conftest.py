"""Tokenizers that the tests of decoding share."""

import functools

import pytest

from jaxtune.data.tokenizer import Tokenizer
from tests.data import made


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """`tokenizer("gemma")` is one as tests/data/made.py makes it."""

    @functools.cache
    def opened(kind):
        directory = tmp_path_factory.mktemp(kind)
        made.KINDS[kind](directory)
        return Tokenizer.open(directory)

    return opened
