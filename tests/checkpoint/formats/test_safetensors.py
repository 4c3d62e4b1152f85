"""checkpoint/files against the safetensors package, and against files that are damaged."""

import json
import mmap
import weakref
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch

from jaxtune.checkpoint.formats import safetensors as ours
from jaxtune.checkpoint.formats import writing
from jaxtune.checkpoint.formats.safetensors import (
    CheckpointError,
    Safetensors,
    new_directory,
    write_sharded,
)

TORCH_ONLY = {
    np.dtype(ml_dtypes.bfloat16): torch.bfloat16,
    np.dtype(ml_dtypes.float8_e4m3fn): torch.float8_e4m3fn,
    np.dtype(ml_dtypes.float8_e5m2): torch.float8_e5m2,
}


def random_array(shape, dtype, seed=0):
    """Any bit pattern at all, except that a bool is 0 or 1."""
    dtype = np.dtype(dtype)
    count = int(np.prod(shape)) * dtype.itemsize
    drawn = np.random.default_rng(seed).integers(
        0, 2 if dtype.kind == "b" else 256, count, np.uint8
    )
    return drawn.view(dtype).reshape(shape)


def all_dtypes():
    return {
        name: random_array((3, 5), dtype, seed)
        for seed, (name, dtype) in enumerate(ours.DTYPES.items())
    }


def to_torch(array):
    if array.dtype not in TORCH_ONLY:
        return torch.from_numpy(array.copy())
    return torch.from_numpy(array.view(np.uint8).copy()).view(TORCH_ONLY[array.dtype])


def to_numpy(tensor):
    if tensor.dtype not in TORCH_ONLY.values():
        return tensor.numpy()
    dtype = next(ours for ours, theirs in TORCH_ONLY.items() if theirs == tensor.dtype)
    return tensor.reshape(-1).view(torch.uint8).numpy().view(dtype).reshape(tuple(tensor.shape))


def assert_same(found, expected):
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()


def write(directory, arrays, **options):
    shapes = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    return write_sharded(directory, shapes, arrays.__getitem__, **options)


def raw_file(path, header, data=b"", length=None):
    """A file with exactly these parts, sound or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(start, stop, shape=None, dtype="U8"):
    return {"dtype": dtype, "shape": shape or [stop - start], "data_offsets": [start, stop]}


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


def resident(path):
    """How many KiB of a mapped file count as memory of this process."""
    smaps = Path("/proc/self/smaps").read_text().splitlines()
    at = next(row for row, line in enumerate(smaps) if line.endswith(str(path)))
    return next(int(line.split()[1]) for line in smaps[at:] if line.startswith("Rss:"))


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


# Which files a directory means


def sharded(directory, count=3):
    arrays = {f"layer.{number}": random_array((10,), np.float32, number) for number in range(count)}
    write(directory, arrays, max_shard_bytes=40)
    return arrays


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
    with pytest.raises(CheckpointError, match="names 3 files, and 2 of them") as caught:
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
        (b"\x93NUMPY\x01\x00v\x00", "no header found"),
        (b"\xff" * 8 + b"{" + bytes(20), "18,446,744,073,709,551,615 bytes, where 100,000,000"),
        ((200).to_bytes(8, "little") + b'{"w": ', "14 bytes, its header promises 208"),
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
        ({"__metadata__": [1]}, b"", "__metadata__ is"),
        ({"w": 3}, b"", "tensor w needs a dtype"),
        ({"w": {"dtype": "U8", "shape": [1]}}, b"a", "tensor w needs a dtype"),
        ({"w": {"dtype": "U8", "shape": [1], "data_offsets": [0]}}, b"a", "tensor w needs a dtype"),
        ({"w": entry(0, 1, dtype="F4")}, b"a", "dtype F4; jaxtune reads F64, F32"),
        ({"w": entry(0, 1, dtype=["U8"])}, b"a", "has dtype"),
        ({"w": entry(0, 2, shape=[-1, -2])}, b"ab", "whole numbers"),
        ({"w": entry(0, 2, shape=[2.0])}, b"ab", "whole numbers"),
        ({"w": entry(0, 1, shape=[True])}, b"a", "whole numbers"),
        ({"w": entry(-1, 0, shape=[1])}, b"a", "whole numbers"),
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
    with pytest.raises(CheckpointError, match="no header found"):
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
    expected = f"truncated: the file is {len(whole[:keep]):,} bytes, its header promises"
    with pytest.raises(CheckpointError, match=expected + ".*download or copy it again"):
        Safetensors.open(tmp_path)


# Writing


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
    with pytest.raises(CheckpointError, match=r"w was announced as float32\[2, 3\] but came as"):
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
def test_disk_full_while_writing_weights(tmp_path):
    arrays = {"w": random_array((100_000,), np.uint8)}
    with (
        pytest.raises(
            CheckpointError, match=r"disk is full.*need 100,000 bytes, and [\d,]+ were free"
        ),
        new_directory(tmp_path / "export") as partial,
    ):
        (partial / "model.safetensors.partial").symlink_to("/dev/full")
        write(partial, arrays)
    assert list(tmp_path.iterdir()) == []
