"""checkpoint/formats/safetensors.py: tensors are written one at a time, and whole or not at all."""

import weakref
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch

from jaxtune.checkpoint.formats import writing
from jaxtune.checkpoint.formats.safetensors import (
    CheckpointError,
    Safetensors,
    new_directory,
    write_sharded,
)
from tests.checkpoint.formats.arrays import assert_same, random_array
from tests.checkpoint.formats.safetensors_files import sharded, write


def test_transposed_arrays_are_written_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "BLOCK_BYTES", 100)  # 5 rows of 20 bytes
    arrays = {
        "matrix": random_array((5, 12), np.float32).T,
        "stack": random_array((7, 2, 3), np.int16).transpose(1, 2, 0),
    }
    (path,) = write(tmp_path, arrays)
    found = safetensors.numpy.load_file(path)
    for name, array in arrays.items():
        assert_same(found[name], array)


def test_shards_are_filled_up_to_the_limit(tmp_path):
    sizes = {"a": 60, "b": 40, "c": 1, "huge": 500, "d": 2}
    paths = write(
        tmp_path, {n: random_array((s,), np.int8) for n, s in sizes.items()}, max_shard_bytes=100
    )
    assert [list(Safetensors.open(path).tensors) for path in paths] == [
        ["a", "b"],
        ["c"],
        ["huge"],
        ["d"],
    ]
    (path,) = write(tmp_path, {"huge": random_array((500,), np.int8)}, max_shard_bytes=100)
    assert path.name == "model.safetensors"


def test_only_one_tensor_is_alive_at_a_time(tmp_path):
    made = []

    class Tracked(np.ndarray):
        """What a weak reference can watch until its last view goes."""

    def produce(name):
        assert not any(watch() is not None for watch in made), "a tensor before is still held"
        array = random_array((50,), np.int8).view(Tracked)
        made.append(weakref.ref(array))
        return array

    shapes = dict.fromkeys("abcd", ((50,), np.int8))
    assert len(write_sharded(tmp_path, shapes, produce, max_shard_bytes=100)) == 2


@pytest.mark.parametrize("wrong", [np.zeros((3, 2), np.float32), np.zeros((2, 3), np.float64)])
def test_produced_tensor_must_be_as_announced(tmp_path, wrong):
    shapes = {"good": ((1,), np.float32), "w": ((2, 3), np.float32)}
    made = {"good": np.ones(1, np.float32), "w": wrong}
    with pytest.raises(CheckpointError, match=r"w: expected float32\[2, 3\], found"):
        write_sharded(tmp_path, shapes, made.__getitem__)
    assert list(tmp_path.iterdir()) == []


def test_dtype_that_safetensors_cannot_hold(tmp_path):
    with pytest.raises(CheckpointError, match="w has dtype complex128"):
        write_sharded(tmp_path, {"w": ((1,), np.complex128)}, lambda name: pytest.fail("asked"))


def test_failure_leaves_no_half_written_shard(tmp_path):
    def produce(name):
        if name == "b":
            raise KeyboardInterrupt
        return np.ones(10, np.int8)

    shapes = dict.fromkeys("ab", ((10,), np.int8))
    with pytest.raises(KeyboardInterrupt):
        write_sharded(tmp_path, shapes, produce)
    assert list(tmp_path.iterdir()) == []


def test_weights_are_on_the_disk_before_they_have_their_names(tmp_path, synced):
    sharded(tmp_path)
    assert synced == {path.stat().st_ino for path in tmp_path.iterdir()}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_disk_full_while_writing_weights(tmp_path, monkeypatch):
    monkeypatch.setattr("secrets.token_hex", lambda count: "0")
    arrays = {"w": random_array((100_000,), np.uint8)}
    with (
        pytest.raises(
            CheckpointError, match=r"disk is full.*need 100,000 bytes, and [\d,]+ were free"
        ),
        new_directory(tmp_path / "export") as partial,
    ):
        (partial / ".model.safetensors.partial-0").symlink_to("/dev/full")
        write(partial, arrays)
    assert list(tmp_path.iterdir()) == []
