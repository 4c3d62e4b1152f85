"""checkpoint/formats/safetensors.py: which files a directory means, and files that are damaged."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch

from jaxtune.checkpoint.formats import safetensors as ours
from jaxtune.checkpoint.formats.safetensors import CheckpointError, Safetensors
from tests.checkpoint.formats.arrays import assert_same, random_array
from tests.checkpoint.formats.safetensors_files import entry, raw_file, sharded, to_torch, write

# Which files a directory means


def test_sharded_directory(tmp_path):
    arrays = sharded(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
        "model.safetensors.index.json",
    ]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 120
    for name, array in arrays.items():
        assert_same(safetensors.numpy.load_file(tmp_path / index["weight_map"][name])[name], array)
    with Safetensors.open(str(tmp_path)) as checkpoint:
        assert checkpoint.metadata == {"format": "pt"}
        assert list(checkpoint.tensors) == list(arrays)
        for name, array in arrays.items():
            assert_same(checkpoint.read(name), array)


def test_reads_shards_of_the_reference(tmp_path):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    expected = {f"w{n}": random_array((16,), ml_dtypes.bfloat16, n) for n in range(5)}
    tensors = {name: to_torch(array) for name, array in expected.items()}
    huggingface_hub.save_torch_state_dict(tensors, tmp_path, max_shard_size=64)
    assert len(list(tmp_path.glob("model-*-of-00003.safetensors"))) == 3
    with Safetensors.open(tmp_path) as checkpoint:
        for name, array in expected.items():
            assert_same(checkpoint.read(name), array)


def test_one_file_wins_over_an_index(tmp_path):
    sharded(tmp_path)
    write(tmp_path, {"single": random_array((2,), np.int8)})
    assert list(Safetensors.open(tmp_path).tensors) == ["single"]


def test_lone_file_of_any_name(tmp_path):
    (path,) = write(tmp_path, {"w": random_array((2,), np.int8)})
    path.rename(tmp_path / "adapter_model.safetensors")
    assert list(Safetensors.open(tmp_path).tensors) == ["w"]


def test_lone_shard_is_no_checkpoint(tmp_path):
    sharded(tmp_path)
    for name in (
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
        ours.INDEX_NAME,
    ):
        (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match="one of 3 shards"):
        Safetensors.open(tmp_path)


def test_several_files_without_an_index(tmp_path):
    sharded(tmp_path)
    (tmp_path / ours.INDEX_NAME).unlink()
    with pytest.raises(
        CheckpointError, match=r"model-00003-of-00003.*no model\.safetensors\.index"
    ):
        Safetensors.open(tmp_path)


@pytest.mark.parametrize(
    "name", ["pytorch_model-00001-of-00002.bin", "weights.pt", "consolidated.00.pth"]
)
def test_pickles_are_not_read(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x02")
    with pytest.raises(CheckpointError, match=f"{name}.*run code.*save_pretrained"):
        Safetensors.open(tmp_path)


def test_directory_without_weights(tmp_path):
    with pytest.raises(CheckpointError, match="an empty directory"):
        Safetensors.open(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"has no weights.*found config\.json"):
        Safetensors.open(tmp_path)


def test_no_such_path(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere: no such file or directory"):
        Safetensors.open(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no such file"):
        Safetensors.open(tmp_path / "nowhere.safetensors")


def test_all_missing_shards_are_named(tmp_path):
    sharded(tmp_path)
    for number in (1, 3):
        (tmp_path / f"model-0000{number}-of-00003.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match="2 of the 3 files that it lists are missing"
    ) as caught:
        Safetensors.open(tmp_path)
    assert "model-00001-of-00003.safetensors" in str(caught.value)
    assert "model-00003-of-00003.safetensors" in str(caught.value)
    assert "model-00002-of-00003.safetensors" not in str(caught.value)


def test_shard_that_lacks_a_promised_tensor(tmp_path):
    sharded(tmp_path)
    index = tmp_path / ours.INDEX_NAME
    index.write_text(index.read_text().replace("layer.1", "layer.x"))
    with pytest.raises(CheckpointError, match=r"layer\.x \(model-00002-of-00003\.safetensors\)"):
        Safetensors.open(tmp_path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"weight_map": {', "is not valid JSON"),
        ("[1, 2]", "is a JSON list, not an object"),
        ('{"metadata": {}}', "no weight_map"),
        ('{"weight_map": {}}', "no weight_map"),
        ('{"weight_map": {"w": "../other/model.safetensors"}}', "outside its directory"),
        ('{"weight_map": {"w": 3}}', "outside its directory"),
    ],
)
def test_bad_index(tmp_path, text, problem):
    (tmp_path / ours.INDEX_NAME).write_text(text)
    with pytest.raises(CheckpointError, match=f"index.json.*{problem}"):
        Safetensors.open(tmp_path)


# Damaged files


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"\x01\x02\x03", "is 3 bytes long, too short"),
        (bytes(8), "not valid JSON"),
        (b"PK\x03\x04" + bytes(100), "a zip archive.*run code"),
        (b"\x80\x02}q\x00(X\x05\x00\x00\x00weight", "a Python pickle.*run code"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b"GGUF\x03\x00\x00\x00" + bytes(20), "a GGUF file"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\x93NUMPY\x01\x00v\x00", "not a safetensors file: found no header"),
        (
            b"\xff" * 8 + b"{" + bytes(20),
            "18,446,744,073,709,551,615 bytes, above the limit of 100,000,000",
        ),
        (
            (200).to_bytes(8, "little") + b'{"w": ',
            "header describes 208 bytes, but the file has 14",
        ),
    ],
)
def test_no_safetensors_file(tmp_path, content, problem):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"(?s)model.safetensors.*{problem}"):
        Safetensors.open(path)


@pytest.mark.parametrize(
    ("header", "data", "problem"),
    [
        (b'{"w": }', b"", "its header is not valid JSON"),
        (b'{"\xff": 1}', b"", "its header is not valid JSON"),
        (b'{"a":' * 100_000, b"", "its header is not valid JSON"),
        ({"__metadata__": [1]}, b"", r"expected an object as __metadata__, found \[1\]"),
        ({"w": 3}, b"", "tensor w: expected a dtype"),
        ({"w": {"dtype": "U8", "shape": [1]}}, b"a", "tensor w: expected a dtype"),
        (
            {"w": {"dtype": "U8", "shape": [1], "data_offsets": [0]}},
            b"a",
            "tensor w: expected a dtype",
        ),
        ({"w": entry(0, 1, dtype="F4")}, b"a", "dtype F4; jaxtune reads F64, F32"),
        ({"w": entry(0, 1, dtype=["U8"])}, b"a", "has dtype"),
        ({"w": entry(0, 2, shape=[-1, -2])}, b"ab", "non-negative integers"),
        ({"w": entry(0, 2, shape=[2.0])}, b"ab", "non-negative integers"),
        ({"w": entry(0, 1, shape=[True])}, b"a", "non-negative integers"),
        ({"w": entry(-1, 0, shape=[1])}, b"a", "non-negative integers"),
        (
            {"w": entry(0, 3, shape=[2, 2])},
            b"abc",
            r"spans 3 bytes, but U8 of shape \[2, 2\] takes 4",
        ),
        ({"w": entry(4, 0, shape=[4])}, b"abcd", "spans -4 bytes"),
        ({"a": entry(0, 4), "b": entry(2, 6)}, b"abcdef", "tensor b overlaps the one before it"),
        ({"a": entry(0, 4), "b": entry(0, 4)}, b"abcd", "tensor b overlaps the one before it"),
        ({"a": entry(0, 2), "b": entry(3, 4)}, b"abcd", "tensor b leaves a gap"),
        ({"a": entry(1, 4)}, b"abcd", "tensor a leaves a gap"),
        ({"a": entry(0, 2)}, b"abcd", "accounts for only"),
    ],
)
def test_damaged_header(tmp_path, header, data, problem):
    path = raw_file(tmp_path / "model.safetensors", header, data)
    with pytest.raises(CheckpointError, match=f"model.safetensors.*{problem}"):
        Safetensors.open(tmp_path)
    with pytest.raises(safetensors.SafetensorError):  # the reference refuses each of them, too
        safetensors.numpy.load_file(path)


def test_header_that_is_no_object(tmp_path):
    """Told by the brace that a header must begin with."""
    path = raw_file(tmp_path / "model.safetensors", b"[1, 2, 3]")
    with pytest.raises(CheckpointError, match="not a safetensors file: found no header"):
        Safetensors.open(path)


def test_entries_need_no_order(tmp_path):
    header = {"b": entry(2, 4), "a": entry(0, 2), "none": entry(2, 2, shape=[0])}
    path = raw_file(tmp_path / "model.safetensors", header, b"aabb")
    assert Safetensors.open(path).read("b").tobytes() == b"bb"


@pytest.mark.parametrize("keep", [-1, 60])
def test_data_cut_short(tmp_path, keep):
    (path,) = write(tmp_path, {"w": random_array((1000,), np.uint8)}, metadata={})
    whole = path.read_bytes()
    path.write_bytes(whole[:keep])
    expected = f"truncated: its header describes .* bytes, but the file has {len(whole[:keep]):,};"
    with pytest.raises(CheckpointError, match=expected + ".*download or copy it again"):
        Safetensors.open(tmp_path)
