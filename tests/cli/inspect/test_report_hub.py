"""Reports of repositories on the Hub."""

import dataclasses
import re
import shutil

import pytest

from jaxtune.checkpoint import sources
from jaxtune.checkpoint.formats.safetensors import CheckpointError
from jaxtune.checkpoint.hub import HubError
from jaxtune.cli.inspect.report import inspect
from tests import reference
from tests.checkpoint import test_hub
from tests.cli.inspect.checkpoints import bpe


class Ranged(test_hub.Handler):
    """Serves parts of files, as the Hub does, and counts the bytes of each."""

    def answer_file(self, data):
        name = self.path.rsplit("/", 1)[1]
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range") or "")
        if asked and self.command == "GET":
            data = data[int(asked[1]) : int(asked[2]) + 1]
        if self.command == "GET":
            self.server.served[name] = self.server.served.get(name, 0) + len(data)
        super().answer_file(data)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A checkpoint of a few megabytes in shards, with a tokenizer."""
    directory = tmp_path_factory.mktemp("published")
    case = reference.Case("LlamaConfig", dict(vocab_size=8000, tie_word_embeddings=True))
    model = reference.make(case, directory / "single")
    model.save_pretrained(directory / "sharded", max_shard_size="500KB")
    for layout in ("single", "sharded"):
        bpe(directory / layout)
    return directory


@pytest.fixture
def hosted(server):
    """`hosted(directory)` puts its files on a Hub."""
    server.RequestHandlerClass = Ranged
    server.served = {}

    def host(directory):
        server.files = {file.name: file.read_bytes() for file in directory.iterdir()}
        return server

    return host


@pytest.mark.parametrize("layout", ["single", "sharded"])
def test_a_repository_without_its_weights(hosted, published, tmp_path, layout):
    server = hosted(published / layout)
    weights = [name for name in server.files if name.endswith(".safetensors")]
    assert (len(weights) > 1) == (layout == "sharded")
    report = inspect(test_hub.REPO)
    local = inspect(published / layout)
    assert dataclasses.replace(report, source=local.source, directory=local.directory) == local
    # The largest file is mostly weights; 100 kB is what huggingface_hub asks for to find a header.
    assert all(server.served[name] <= 100_001 for name in weights)
    assert sum(len(server.files[name]) for name in weights) > 10 * server.served[weights[0]]
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_bits_of_a_repository(hosted, published):
    server = hosted(published / "sharded")
    assert inspect(test_hub.REPO, quant=[]).quant == inspect(published / "single", quant=[]).quant
    with pytest.raises(
        CheckpointError, match=r"nf4 reads the weights, but .* not on this machine: model-"
    ):
        inspect(test_hub.REPO, quant=["nf4"])
    weights = [name for name in server.served if name.endswith(".safetensors")]
    assert weights and all(server.served[name] <= 2 * 100_001 for name in weights)  # headers, twice


def test_a_repository_in_the_cache_is_not_asked_again(hosted, published):
    server = hosted(published / "single")
    sources.locate(test_hub.REPO)
    server.served.clear()
    inspect(test_hub.REPO)
    assert server.served == {}


def test_a_repository_that_cannot_be_reached(hosted, published, monkeypatch):
    server = hosted(published / "single")
    inspect(test_hub.REPO)  # now all but the weights is in the cache
    monkeypatch.setattr(test_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        HubError, match="HF_HUB_OFFLINE is set, and only part of it is in the cache"
    ):
        inspect(test_hub.REPO)
    monkeypatch.setattr(test_hub.constants, "HF_HUB_OFFLINE", False)
    server.refusals["model.safetensors"] = (403, {"X-Error-Code": "GatedRepo"})
    with pytest.raises(HubError, match="is gated, and the account of your token has no access"):
        inspect(test_hub.REPO)


def test_a_repository_without_safetensors(hosted, published, tmp_path):
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / "pickled").mkdir(exist_ok=True)
        shutil.copy(published / "single" / name, tmp_path / "pickled" / name)
    hosted(tmp_path / "pickled")
    with pytest.raises(HubError, match=r"maker/model has neither model\.safetensors nor"):
        inspect(test_hub.REPO)


def test_a_repository_of_packed_tensors(hosted, llama):
    file = llama / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].replace(b'"F32"', b'"F4"', 1)
    file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    hosted(llama)
    with pytest.raises(HubError, match=r"maker/model: tensor .* has dtype F4; jaxtune reads F64"):
        inspect(test_hub.REPO)
