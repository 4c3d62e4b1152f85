"""checkpoint/npz against numpy.load and numpy.savez, and against files that are damaged."""

import contextlib
import io
import os
import signal
import socket
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

from jaxtune.checkpoint.formats import npz
from jaxtune.checkpoint.formats.npz import Npz
from jaxtune.checkpoint.formats.tensors import CheckpointError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = (*npz.PLAIN, BFLOAT16)
SAVERS = [np.savez, np.savez_compressed]
LAYERS = "params/llm/layers/attn/q_einsum/w"


def random_array(shape, dtype, seed=0):
    """Any bit pattern at all, except that a bool is 0 or 1."""
    dtype = np.dtype(dtype)
    drawn = np.random.default_rng(seed).integers(
        0, 2 if dtype.kind == "b" else 256, int(np.prod(shape)) * dtype.itemsize, np.uint8
    )
    return drawn.view(dtype).reshape(shape)


def all_dtypes():
    return {f"params/{dtype}": random_array((3, 5), dtype) for dtype in DTYPES}


def write(path, arrays, **options):
    plan = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    return npz.write(path, plan, lambda name: [arrays[name]], **options)


def assert_same(found, expected):
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()


def as_numpy_holds_it(array):
    return array.view("V2") if array.dtype == BFLOAT16 else array


def raw_zip(path, members, method=zipfile.ZIP_STORED):
    """An archive with exactly these members: (name, bytes)."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def npy(array=None, header=None, data=b""):
    """A member's bytes: an array's, or a header that says anything."""
    out = io.BytesIO()
    if header is None:
        np.save(out, array)
        return out.getvalue()
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


# Round trips


@pytest.mark.parametrize("save", SAVERS)
def test_reads_what_numpy_writes(tmp_path, save):
    expected = all_dtypes()
    save(tmp_path / "model.npz", **expected)
    with Npz.open(tmp_path / "model.npz") as stored:
        assert list(stored.tensors) == list(expected)
        assert stored.metadata == {}
        for name, array in expected.items():
            assert_same(stored.read(name), array)
            info = stored.tensors[name]
            assert (info.name, info.dtype, info.shape) == (name, array.dtype, (3, 5))
            assert info.nbytes == array.nbytes
            assert info.deflated == (save is np.savez_compressed)


def test_numpy_reads_what_we_write(tmp_path):
    expected = all_dtypes()
    path = write(tmp_path / "model.npz", expected)
    with np.load(path, allow_pickle=False) as found:
        assert found.files == list(expected)
        for name, array in expected.items():
            assert_same(found[name], as_numpy_holds_it(array))
    assert zipfile.ZipFile(path).testzip() is None  # all checksums are right
    with Npz.open(path) as stored:
        for name, array in expected.items():
            assert_same(stored.read(name), array)


@pytest.mark.parametrize("descr", ["|V2", "<V2"])
def test_records_of_two_bytes_are_bfloat16(tmp_path, descr):
    array = random_array((4,), BFLOAT16)
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': (4,), }}"
    path = raw_zip(tmp_path / "m.npz", [("w.npy", npy(header=header, data=array.tobytes()))])
    assert_same(Npz.open(path).read("w"), array)


def test_bfloat16_is_written_as_big_vision_expects(tmp_path):
    path = write(tmp_path / "m.npz", {"w": random_array((4,), BFLOAT16)})
    assert b"'descr': '|V2'" in path.read_bytes()
    with np.load(path) as found:  # what its recover_dtype asks
        assert found["w"].dtype.type is np.void and found["w"].itemsize == 2


@pytest.mark.parametrize("save", SAVERS)
@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16])
def test_fortran_order(tmp_path, save, dtype):
    array = random_array((3, 4, 5), dtype)
    save(tmp_path / "m.npz", w=np.asfortranarray(as_numpy_holds_it(array)), c=array)
    with Npz.open(tmp_path / "m.npz") as stored:
        assert (stored.tensors["w"].order, stored.tensors["c"].order) == ("F", "C")
        assert_same(stored.read("w"), array)
        assert_same(stored.read("w")[1:, 2], array[1:, 2])


@pytest.mark.parametrize("save", SAVERS)
def test_scalars_and_empty_arrays(tmp_path, save):
    arrays = {
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.array(1.5, BFLOAT16),
        "last": np.zeros((2, 0), np.int8),
    }
    save(tmp_path / "theirs.npz", **arrays)
    write(tmp_path / "ours.npz", arrays)
    for path in tmp_path.iterdir():
        with Npz.open(path) as stored:
            for name, array in arrays.items():
                assert_same(stored.read(name), array)


def test_no_arrays_at_all(tmp_path):
    path = write(tmp_path / "m.npz", {})
    assert Npz.open(path).tensors == {}
    with np.load(path) as found:
        assert found.files == []


def test_names_beyond_ascii(tmp_path):
    path = write(tmp_path / "m.npz", {"größe/ω": np.ones(3, np.float32)})
    assert list(Npz.open(path).tensors) == ["größe/ω"]
    assert Npz.open(path).tensors["größe/ω"].start % 64 == 0


def test_what_packers_of_directories_add_is_passed_over(tmp_path):
    junk = [("params/", b""), ("__MACOSX/._w.npy", b"x"), ("params/.DS_Store", b"x")]
    path = raw_zip(tmp_path / "m.npz", [*junk, ("w.npy", npy(np.ones(2)))])
    assert list(Npz.open(path).tensors) == ["w"]


# Places in the file


@pytest.mark.parametrize("offset", range(1, 8))
@pytest.mark.parametrize("dtype", [np.float32, np.float16, BFLOAT16])
def test_arrays_at_odd_places(tmp_path, offset, dtype):
    """As numpy.savez leaves them; what is done with them must not mind."""
    array = np.random.default_rng(0).normal(size=(6, 7)).astype(dtype)
    np.savez(tmp_path / "m.npz", **{"n" * offset: array})
    with Npz.open(tmp_path / "m.npz") as stored:
        (info,) = stored.tensors.values()
        view = stored.read(info.name)
        assert view.flags.aligned == (info.start % view.itemsize == 0)
        assert_same(view[1:5, ::2], array[1:5, ::2])
        assert_same(np.ascontiguousarray(view.T), np.ascontiguousarray(array.T))
        assert_same(view.astype(np.float64), array.astype(np.float64))
        assert_same(view.astype(BFLOAT16), array.astype(BFLOAT16))
        assert_same(np.asarray(jax.device_put(view)), array)
        assert_same(np.asarray(jax.device_put(view[:, 1:])), array[:, 1:])


def test_what_we_write_is_aligned(tmp_path):
    arrays = {"n" * length: random_array((length,), np.uint8) for length in range(1, 70)}
    path = write(tmp_path / "m.npz", arrays)
    with Npz.open(path) as stored:
        assert {info.start % 64 for info in stored.tensors.values()} == {0}
        for name, array in arrays.items():
            assert_same(stored.read(name), array)


def test_the_same_tensors_make_the_same_bytes(tmp_path, monkeypatch):
    first = write(tmp_path / "a.npz", all_dtypes()).read_bytes()
    monkeypatch.setattr(sys, "platform", "win32")  # which zipfile notes in an archive
    assert write(tmp_path / "b.npz", all_dtypes()).read_bytes() == first


class Sparse:
    """A file in which long runs of zeros become a hole."""

    def __init__(self, file):
        self.file = file

    def write(self, data):
        if memoryview(data).nbytes < 2**20:
            return self.file.write(data)
        return self.file.seek(memoryview(data).nbytes, os.SEEK_CUR)

    def __getattr__(self, name):
        return getattr(self.file, name)


@contextlib.contextmanager
def sparse_file(path, needed, overwrite):
    with path.open("wb") as file:
        yield Sparse(file)


def test_arrays_of_more_than_four_gibibytes(tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "new_file", sparse_file)
    monkeypatch.setattr(zipfile, "crc32", lambda data, before=0: 0)  # of 4 GiB takes seconds
    zeros, ends = np.zeros((2**22, 16), np.uint8), np.arange(16, dtype=np.uint8)[None]
    blocks = {"huge": [zeros] * 65 + [ends], "after": [ends]}
    plan = {"huge": ((65 * 2**22 + 1, 16), np.uint8), "after": ((1, 16), np.uint8)}
    path = npz.write(tmp_path / "m.npz", plan, blocks.__getitem__)
    assert path.stat().st_size > 2**32 > 2**20 > path.stat().st_blocks * 512
    with Npz.open(path) as stored:
        assert stored.tensors["huge"].nbytes > 2**32
        assert stored.tensors["after"].start > 2**32
        assert_same(stored.read("huge")[-1:], ends)
        assert_same(stored.read("after"), ends)
        assert not stored.read("huge")[2**22].any()
    with np.load(path) as found:
        assert found["after"].shape == (1, 16)
    assert zipfile.ZipFile(path).getinfo("huge.npy").file_size > 2**32


# Reading into memory, and letting go


def test_read_is_a_read_only_view(tmp_path):
    for save in SAVERS:
        save(tmp_path / "m.npz", w=np.arange(64))
        with Npz.open(tmp_path / "m.npz") as stored:
            array = stored.read("w")
            assert np.shares_memory(array, stored.read("w"))
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1


def inflated(monkeypatch):
    """The names of arrays that are inflated, as it happens."""
    calls, inflate = [], npz._inflate
    monkeypatch.setattr(npz, "_inflate", lambda info: calls.append(info.name) or inflate(info))
    return calls


def test_compressed_arrays_are_inflated_once_for_all_layers(tmp_path, monkeypatch):
    layers = random_array((18, 4), np.float32)
    np.savez_compressed(tmp_path / "m.npz", **{LAYERS: layers, "other": layers + 1})
    calls = inflated(monkeypatch)
    with Npz.open(tmp_path / "m.npz") as stored:
        for layer in range(18):
            assert_same(stored.read(LAYERS)[layer], layers[layer])
        assert calls == [LAYERS]
        stored.read("other")
        stored.read("other")
        stored.read(LAYERS)
        assert calls == [LAYERS, "other", LAYERS]
        for layer in range(18):  # as a leaf is read whose layers are let go one by one
            stored.release(LAYERS)
            assert_same(stored.read(LAYERS)[layer], layers[layer])
        assert calls == [LAYERS, "other", LAYERS]


def test_no_two_compressed_arrays_are_held(tmp_path):
    size = 8_000_000
    members = [(f"{n}.npy", npy(np.full(size, ord(n), np.uint8))) for n in "abcd"]
    path = raw_zip(tmp_path / "m.npz", members, zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("plain.npy", npy(np.ones(2)), zipfile.ZIP_STORED)
    with Npz.open(path) as stored:
        tracemalloc.start()
        for name in "abcd":
            assert stored.read(name)[-1] == ord(name)
        _, peak = tracemalloc.get_traced_memory()
        stored.read("plain")
        after_another, _ = tracemalloc.get_traced_memory()
        stored.read("a")
        stored.close()
        after_closing, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert size < peak < size + 4 * npz.INFLATED_BYTES  # zipfile holds a block a few times
    assert max(after_another, after_closing) < size / 10


def test_arrays_outlive_close_and_release(tmp_path):
    for save in SAVERS:
        array = random_array((100_000,), np.int32)
        save(tmp_path / "m.npz", w=array)
        with Npz.open(tmp_path / "m.npz") as stored:
            view = stored.read("w")
            stored.release("w")
        assert_same(view, array)


def resident(path):
    """How many KiB of a mapped file count as memory of this process."""
    smaps = Path("/proc/self/smaps").read_text().splitlines()
    at = next(row for row, line in enumerate(smaps) if line.endswith(str(path)))
    return next(int(line.split()[1]) for line in smaps[at:] if line.startswith("Rss:"))


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="counts pages through /proc")
def test_released_arrays_leave_memory(tmp_path):
    array = random_array((2_000_003,), np.uint8)
    np.savez(tmp_path / "m.npz", w=array)
    with Npz.open(tmp_path / "m.npz") as stored:
        assert_same(stored.read("w"), array)
        assert resident(tmp_path / "m.npz") > 1900
        stored.release("w")
        assert resident(tmp_path / "m.npz") < 200
        assert_same(stored.read("w"), array)


def test_unknown_array_names_the_nearest(tmp_path):
    np.savez(tmp_path / "m.npz", **{LAYERS: np.ones(3)})
    with Npz.open(tmp_path / "m.npz") as stored:
        for ask in (stored.read, stored.release):
            with pytest.raises(CheckpointError, match=rf"no tensor llm.*is {LAYERS}"):
                ask(LAYERS.removeprefix("params/"))


# Files that are something else, or damaged


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"\x01\x02\x03", "no zip archive"),
        (b"\x80\x02}q\x00(X\x05\x00\x00\x00weight", "a Python pickle.*run code"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (npy(np.ones(3)), "a single array.*numpy.savez"),
        (b"PK\x03\x04" + bytes(100), "truncated"),
    ],
)
def test_no_npz_file(tmp_path, content, problem):
    (tmp_path / "m.npz").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"m\.npz.*{problem}"):
        Npz.open(tmp_path / "m.npz")


def test_no_such_path(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere\.npz: no such file"):
        Npz.open(tmp_path / "nowhere.npz")
    with pytest.raises(CheckpointError, match="is a directory: name the"):
        Npz.open(tmp_path)


@pytest.mark.parametrize("save", SAVERS)
@pytest.mark.parametrize("keep", [10, 200, -1, -30])
def test_file_cut_short(tmp_path, save, keep):
    save(tmp_path / "m.npz", w=random_array((1000,), np.uint8))
    (tmp_path / "m.npz").write_bytes((tmp_path / "m.npz").read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"m\.npz is truncated.*download or copy it again"):
        Npz.open(tmp_path / "m.npz")


@pytest.mark.parametrize("lost", [slice(0, 50), slice(300, 400), slice(1100, 1101)])
def test_bytes_lost_within(tmp_path, lost):
    """The list at the end is whole, and nothing is where it says."""
    np.savez(tmp_path / "m.npz", w=np.zeros(1000, np.uint8))
    whole = bytearray((tmp_path / "m.npz").read_bytes())
    del whole[lost]
    (tmp_path / "m.npz").write_bytes(whole)
    with pytest.raises(CheckpointError, match=r"m\.npz.*download or copy it again|no zip archive"):
        Npz.open(tmp_path / "m.npz")


def test_compressed_data_are_checked(tmp_path):
    np.savez_compressed(tmp_path / "m.npz", w=random_array((100_000,), np.uint8))
    whole = bytearray((tmp_path / "m.npz").read_bytes())
    whole[70_000] ^= 1
    (tmp_path / "m.npz").write_bytes(whole)
    with (
        Npz.open(tmp_path / "m.npz") as stored,
        pytest.raises(CheckpointError, match=r"m\.npz: array w is damaged \(.*copy it again"),
    ):
        stored.read("w")


@pytest.mark.parametrize("array", [np.array([{}, []], object), np.array(None)])
def test_pickles_are_not_read(tmp_path, array):
    np.savez(tmp_path / "m.npz", fine=np.ones(2), bad=array)
    with pytest.raises(CheckpointError, match=r"array bad holds Python objects.*run code"):
        Npz.open(tmp_path / "m.npz")


def test_what_torch_saves_is_not_read(tmp_path):
    path = raw_zip(tmp_path / "m.npz", [("archive/data.pkl", b"\x80\x02"), ("archive/data/0", b"")])
    with pytest.raises(CheckpointError, match=r"torch\.save writes.*run code"):
        Npz.open(path)


@pytest.mark.parametrize(
    "array",
    [
        np.ones(2, np.complex64),
        np.array(["text"]),
        np.ones(2, ">f4"),
        np.zeros(2, [("a", "u1"), ("b", "u1")]),
        np.zeros(2, "V3"),
        np.zeros(2, ml_dtypes.float8_e4m3fn),
    ],
)
def test_other_dtypes(tmp_path, array):
    np.savez(tmp_path / "m.npz", bad=array)
    with pytest.raises(CheckpointError, match=r"array bad has dtype .*; jaxtune reads float64,"):
        Npz.open(tmp_path / "m.npz")


def header(descr="<f4", order="False", shape="(2,)"):
    return f"{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "no sound .npy header"),
        (b"text", "no sound .npy header"),
        (b"\x93NUMPY\x09\x00" + bytes(100), r"its version is \(9, 0\)"),
        (npy(header="nonsense"), "no sound .npy header"),
        (npy(header="[1, 2]"), "no sound .npy header"),
        (npy(header="(" * 5_000), "no sound .npy header"),
        (npy(header="-" * 5_000 + "1"), "no sound .npy header"),
        (npy(header="{[]: 1}"), "no sound .npy header"),
        (npy(header=header(descr="<f4',"), data=bytes(8)), "no sound .npy header"),
        (npy(header="{'descr': ('<f4',), 'fortran_order': False, 'shape': (2,)}"), "no sound"),
        (npy(header="__import__('os').abort()"), "no sound .npy header"),
        (npy(header="{" + " " * 20_000 + "}"), "no sound .npy header"),
        (npy(header=header(descr="nonsense"), data=bytes(8)), "no sound .npy header"),
        (npy(header=header(order="3"), data=bytes(8)), "no sound .npy header"),
        (npy(header=header(shape="(-1, -2)"), data=bytes(8)), r"has shape \[-1, -2\]"),
        (npy(header=header(), data=bytes(7)), r"7 bytes, but float32 of shape \[2\] takes 8"),
        (npy(header=header(), data=bytes(9)), r"9 bytes, but float32 of shape \[2\] takes 8"),
        (npy(header=header(shape=f"({2**62}, 4)")), "has 0 bytes, but float32"),
    ],
)
@pytest.mark.parametrize("method", npz.METHODS)
def test_damaged_member(tmp_path, content, problem, method):
    path = raw_zip(tmp_path / "m.npz", [("w.npy", content)], method)
    with pytest.raises(CheckpointError, match=rf"(?s)m\.npz: array w.*{problem}"):
        Npz.open(path)


@pytest.mark.parametrize(
    ("method", "name"), [(zipfile.ZIP_BZIP2, "bzip2"), (zipfile.ZIP_LZMA, "lzma")]
)
def test_other_compressions(tmp_path, method, name):
    path = raw_zip(tmp_path / "m.npz", [("w.npy", npy(np.ones(2)))], method)
    with pytest.raises(CheckpointError, match=f"array w is compressed by {name}"):
        Npz.open(path)


def patched(path, at, value):
    """An archive of one member, with two bytes of its entry in the list at the end replaced."""
    raw_zip(path, [("w.npy", npy(np.ones(2)))])
    whole = bytearray(path.read_bytes())
    entry = whole.index(b"PK\x01\x02")
    whole[entry + at : entry + at + 2] = value.to_bytes(2, "little")
    path.write_bytes(whole)
    return path


@pytest.mark.parametrize(
    ("at", "value", "problem"),
    [
        (8, 1, "is encrypted"),
        (8, 0x20, "is damaged"),  # a patch to an earlier version of the member
        (10, 77, "is compressed by 77"),
        (10, 8, "is damaged"),  # plain bytes that are no deflated ones
        (20, 100, "takes 100 bytes and should take 144"),
        (24, 100, "takes 144 bytes and should take 100"),
    ],
)
def test_damaged_list(tmp_path, at, value, problem):
    with pytest.raises(CheckpointError, match=rf"m\.npz: array w {problem}"):
        Npz.open(patched(tmp_path / "m.npz", at, value))


def longer_than_it_is(path, method):
    """A member that header and list say to have 1,000 elements, and that has 10."""
    content = npy(header=header(descr="|u1", shape="(1000,)"), data=bytes(10))
    raw_zip(path, [("w.npy", content)], method)
    whole = bytearray(path.read_bytes())
    entry = whole.index(b"PK\x01\x02")
    size = (len(content) + 990).to_bytes(4, "little")
    whole[entry + 24 : entry + 28] = size
    if method == zipfile.ZIP_STORED:
        whole[entry + 20 : entry + 24] = size
    path.write_bytes(whole)
    return path


def test_array_that_reaches_beyond_the_file(tmp_path):
    path = longer_than_it_is(tmp_path / "m.npz", zipfile.ZIP_STORED)
    with pytest.raises(CheckpointError, match="array w lies behind the end of the file"):
        Npz.open(path)


def test_compressed_array_that_ends_early(tmp_path):
    path = longer_than_it_is(tmp_path / "m.npz", zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match=r"array w is damaged \(it ends early\)"):
        Npz.open(path).read("w")


@pytest.mark.parametrize("save", SAVERS)
def test_any_damage_is_found_or_harmless(tmp_path, save):
    """No byte may lead to an error that is not ours."""
    save(tmp_path / "m.npz", **{"größe": np.ones(3, np.float32), "w": np.ones((2, 2), BFLOAT16)})
    whole = (tmp_path / "m.npz").read_bytes()
    refused = 0
    for place in range(len(whole)):
        (tmp_path / "m.npz").write_bytes(whole[:place] + b"\xff" + whole[place + 1 :])
        try:
            with Npz.open(tmp_path / "m.npz") as stored:
                for name in stored.tensors:
                    stored.read(name).tobytes()
        except CheckpointError:
            refused += 1
    assert refused > len(whole) / 5


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_of_one_name(tmp_path):
    path = raw_zip(tmp_path / "m.npz", [("w.npy", npy(np.ones(2)))] * 2)
    with pytest.raises(CheckpointError, match=r"more than one w\.npy"):
        Npz.open(path)


def test_other_archives(tmp_path):
    path = raw_zip(tmp_path / "m.npz", [("w.npy", npy(np.ones(2))), ("thesis.tex", b"")])
    with pytest.raises(CheckpointError, match=r"holds thesis\.tex, where members.*other zip"):
        Npz.open(path)


# Writing


def test_layers_are_written_one_after_another(tmp_path):
    layers = random_array((18, 4, 5), BFLOAT16)
    blocks = {LAYERS: (layer for layer in layers)}
    npz.write(tmp_path / "m.npz", {LAYERS: (layers.shape, layers.dtype)}, blocks.__getitem__)
    assert_same(Npz.open(tmp_path / "m.npz").read(LAYERS), layers)


def test_transposed_blocks(tmp_path):
    layers = random_array((3, 4, 5), np.float32).transpose(0, 2, 1)
    plan = {"w": (layers.shape, layers.dtype)}
    npz.write(tmp_path / "m.npz", plan, lambda name: iter(layers))
    assert_same(Npz.open(tmp_path / "m.npz").read("w"), layers)


def test_one_block_is_in_memory_at_a_time(tmp_path):
    rows = 1_000_000

    def produce(name):
        for layer in range(6):
            yield np.full(rows, layer, np.uint8)

    plan = dict.fromkeys("ab", ((6, rows), np.uint8))
    tracemalloc.start()
    npz.write(tmp_path / "m.npz", plan, produce)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert rows < peak < 1.5 * rows


@pytest.mark.parametrize(
    ("blocks", "problem"),
    [
        ([np.zeros(2)], "a block came as float64"),
        ([np.zeros(2, np.float32)], "24 bytes, but 8 came"),
        ([np.zeros(4, np.float32)] * 2, "24 bytes, but more came"),
        ([], "24 bytes, but 0 came"),
    ],
)
def test_blocks_must_be_as_announced(tmp_path, blocks, problem):
    with pytest.raises(CheckpointError, match=rf"w was announced as float32\[2, 3\].*{problem}"):
        npz.write(tmp_path / "m.npz", {"w": ((2, 3), np.float32)}, lambda name: blocks)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(CheckpointError, match=r"w has dtype float8_e5m2; an \.npz file holds"):
        write(tmp_path / "m.npz", {"w": np.zeros(2, ml_dtypes.float8_e5m2)})
    with pytest.raises(CheckpointError, match=r"m\.bin: a name that ends in \.npz was expected"):
        write(tmp_path / "m.bin", {})
    assert list(tmp_path.iterdir()) == []


def test_existing_file_is_replaced_only_when_asked(tmp_path):
    path = write(tmp_path / "m.npz", {"w": np.zeros(2)})
    with pytest.raises(CheckpointError, match=r"already exists.*overwrite=True"):
        write(path, {"w": np.ones(2)})
    assert not Npz.open(path).read("w").any()
    write(path, {"w": np.ones(2)}, overwrite=True)
    assert Npz.open(path).read("w").all()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_failure_leaves_nothing(tmp_path, error):
    def produce(name):
        yield np.zeros(1)
        raise error

    with pytest.raises(error):
        npz.write(tmp_path / "m.npz", {"w": ((2,), np.float64)}, produce)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_disk_full(tmp_path):
    name = f".m.npz.partial-{socket.gethostname()}-{os.getpid()}"
    (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=r"disk is full.*need 100,000 bytes"):
        write(tmp_path / "m.npz", {"w": np.zeros(100_000, np.uint8)})
    assert list(tmp_path.iterdir()) == []


def test_killed_process_leaves_nothing_under_the_final_name(tmp_path):
    script = (
        "import os, signal, sys\n"
        "import numpy as np\n"
        "from jaxtune.checkpoint.formats import npz\n"
        "def produce(name):\n"
        "    yield np.zeros(1_000_000)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "npz.write(sys.argv[1], {'w': ((2_000_000,), np.float64)}, produce)\n"
    )
    root = Path(npz.__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "m.npz")], cwd=root, check=False
    )
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".m.npz.partial-") and left.stat().st_size > 7_000_000
    path = write(tmp_path / "m.npz", {"w": np.ones(2)})
    assert list(tmp_path.iterdir()) == [path]
