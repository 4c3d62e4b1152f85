"""Tiny tokenizers of the real kinds, each made once a session."""

import functools
import json

import pytest

from jaxtune.data.tokenizer import Tokenizer
from tests.data import made


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """`checkpoint("gemma")` is a directory with a tokenizer as tests/data/made.py makes it."""

    @functools.cache
    def make(name):
        directory = tmp_path_factory.mktemp(name)
        made.KINDS[name](directory)
        return directory

    return make


@pytest.fixture(scope="session")
def tokenizer(checkpoint):
    """`tokenizer("gemma")` is ours, opened on that directory."""
    return functools.cache(lambda name: Tokenizer.open(checkpoint(name), today="2026-11-05"))


@pytest.fixture(scope="session")
def reference(checkpoint):
    """`reference("gemma")` is what transformers opens there."""
    from transformers import AutoTokenizer

    return functools.cache(lambda name: AutoTokenizer.from_pretrained(checkpoint(name)))


@pytest.fixture
def write(tmp_path):
    """`write("a.jsonl", text or bytes or records)` writes a file and gives its path."""

    def write(name, content):
        if isinstance(content, list):
            content = "".join(json.dumps(record) + "\n" for record in content)
        content = content.encode() if isinstance(content, str) else content
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write
