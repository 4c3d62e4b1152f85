"""checkpoint/formats/safetensors.py: what is read and written against the safetensors package."""

import json
import mmap
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch

from jaxtune.checkpoint.formats.safetensors import CheckpointError, Safetensors
from tests.checkpoint.formats.arrays import assert_same, random_array, resident
from tests.checkpoint.formats.safetensors_files import (
    all_dtypes,
    entry,
    raw_file,
    to_numpy,
    to_torch,
    write,
)

# Round trips


def test_reads_what_the_reference_writes(tmp_path):
    expected = all_dtypes()
    tensors = {name: to_torch(array) for name, array in expected.items()}
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with Safetensors.open(tmp_path) as checkpoint:
        assert checkpoint.tensors.keys() == expected.keys()
        assert checkpoint.metadata == {"format": "pt"}
        for name, array in expected.items():
            assert_same(checkpoint.read(name), array)


def test_reference_reads_what_we_write(tmp_path):
    expected = all_dtypes()
    (path,) = write(tmp_path, expected)
    found = safetensors.torch.load_file(path)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert_same(to_numpy(found[name]), array)
    with safetensors.safe_open(path, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_uniform_dtypes_keep_the_given_order_and_every_tensor_is_aligned(tmp_path):
    wide = {name: random_array((3,), np.float32) for name in ("z", "a", "m")}
    mixed = {"odd": random_array((3,), np.uint8), **wide}
    (path,) = write(tmp_path, wide)
    assert list(Safetensors.open(path).tensors) == ["z", "a", "m"]
    (path,) = write(tmp_path, mixed)
    assert list(Safetensors.open(path).tensors) == ["z", "a", "m", "odd"]
    assert all(
        info.start % info.dtype.itemsize == 0 for info in Safetensors.open(path).tensors.values()
    )


def test_scalars_and_empty_tensors(tmp_path):
    arrays = {
        "empty": np.zeros((0, 4), ml_dtypes.bfloat16),
        "scalar": np.array(1.5, ml_dtypes.bfloat16),
        "last": np.zeros((2, 0), np.int8),
    }
    (path,) = write(tmp_path, arrays)
    found = safetensors.torch.load_file(path)
    with Safetensors.open(path) as checkpoint:
        for name, array in arrays.items():
            assert_same(to_numpy(found[name]), array)
            assert_same(checkpoint.read(name), array)


def test_no_tensors_at_all(tmp_path):
    (path,) = write(tmp_path, {}, metadata={})
    assert safetensors.numpy.load_file(path) == {}
    assert Safetensors.open(path).tensors == {}


def test_header_gives_places_in_the_file(tmp_path):
    array = random_array((4, 3), np.float16)
    (path,) = write(tmp_path, {"w": array})
    info = Safetensors.open(path).tensors["w"]
    assert (info.name, info.dtype, info.shape) == ("w", np.float16, (4, 3))
    assert (info.file, info.nbytes) == (path, 24)
    assert path.read_bytes()[info.start : info.stop] == array.tobytes()


def test_data_start_on_a_multiple_of_eight(tmp_path):
    for length in range(1, 9):
        (path,) = write(tmp_path, {"w" * length: random_array((1,), np.int8)})
        assert Safetensors.open(path).tensors["w" * length].start % 8 == 0


@pytest.mark.parametrize("length", [0x80, 0x4B50])
def test_header_length_that_looks_like_another_format(tmp_path, length):
    """128 begins with the byte of a pickle, 0x4B50 with the PK of a zip archive."""
    header = json.dumps({"w": entry(0, 4)}).encode().ljust(length)
    path = raw_file(tmp_path / "model.safetensors", header, b"abcd")
    assert path.read_bytes()[:2] in (b"\x80\0", b"PK")
    assert Safetensors.open(path).read("w").tobytes() == b"abcd"


# Views, releasing and closing


def test_read_is_a_read_only_view(tmp_path):
    (path,) = write(tmp_path, {"w": random_array((64,), np.uint8)})
    with Safetensors.open(path) as checkpoint:
        array = checkpoint.read("w")
        assert np.shares_memory(array, checkpoint.read("w"))
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="counts pages through /proc")
def test_released_tensors_leave_memory_and_read_the_same(tmp_path):
    arrays = {name: random_array((1_000_003,), np.uint8, ord(name)) for name in "abcd"}
    (path,) = write(tmp_path, arrays)
    with Safetensors.open(path) as checkpoint:
        views = {name: checkpoint.read(name) for name in arrays}
        for name, array in arrays.items():
            assert_same(views[name], array)
        assert resident(path) > 3800
        for name in arrays:
            checkpoint.release(name)
        # Every tensor may keep the page at either end, and what the kernel maps around it.
        assert resident(path) < 400
        for name, array in arrays.items():
            assert_same(views[name], array)
            assert_same(checkpoint.read(name), array)


def test_release_leaves_the_neighbours_alone(tmp_path, monkeypatch):
    """Only whole pages inside the tensor go, and a small tensor has none."""
    (path,) = write(
        tmp_path, {"a": random_array((100,), np.uint8), "b": random_array((9_000,), np.uint8)}
    )
    calls = []

    class Recorder:
        def madvise(self, *call):
            calls.append(call)

        def close(self):
            pass

    with Safetensors.open(path) as checkpoint:
        checkpoint.release("b")  # not mapped yet
        monkeypatch.setattr(checkpoint, "_maps", {path: Recorder()})
        checkpoint.release("a")
        assert calls == []
        checkpoint.release("b")
        ((_, first, length),) = calls
        info = checkpoint.tensors["b"]
        page = mmap.PAGESIZE
        assert first % page == 0 and length % page == 0
        assert info.start <= first < info.start + page
        assert info.stop - page < first + length <= info.stop


def test_arrays_outlive_close(tmp_path):
    array = random_array((1000,), np.int32)
    (path,) = write(tmp_path, {"w": array})
    with Safetensors.open(path) as checkpoint:
        view = checkpoint.read("w")
    assert_same(view, array)


def is_mapped(path):
    return str(path) in Path("/proc/self/maps").read_text()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks for maps in /proc")
def test_maps_close_with_the_last_array(tmp_path):
    (path,) = write(tmp_path, {"w": random_array((8,), np.int8)})
    checkpoint = Safetensors.open(path)
    view = checkpoint.read("w")
    checkpoint.close()
    assert is_mapped(path)
    del view
    assert not is_mapped(path)


def test_unknown_tensor_names_the_nearest(tmp_path):
    (path,) = write(tmp_path, {"model.norm.weight": random_array((8,), np.int8)})
    with pytest.raises(CheckpointError, match=r"no tensor norm\.weight.*model\.norm\.weight"):
        Safetensors.open(path).read("norm.weight")
