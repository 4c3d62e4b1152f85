"""checkpoint/formats/npz.py: what is read and written against numpy.load and numpy.savez."""

import tracemalloc
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxtune.checkpoint.formats import npz
from jaxtune.checkpoint.formats.npz import Npz
from jaxtune.checkpoint.formats.tensors import CheckpointError
from tests.checkpoint.formats.arrays import assert_same, random_array, resident
from tests.checkpoint.formats.npz_files import (
    BFLOAT16,
    LAYERS,
    SAVERS,
    all_dtypes,
    npy,
    raw_zip,
    write,
)


def as_numpy_holds_it(array):
    return array.view("V2") if array.dtype == BFLOAT16 else array


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
@pytest.mark.parametrize("order", ["C", "F"])
def test_single_elements(tmp_path, save, order):
    array = np.asarray(random_array((3, 5, 7), np.dtype(np.float16)), order=order)
    save(tmp_path / "model.npz", w=array)
    index = np.unravel_index(np.arange(0, array.size, 4), array.shape)
    with Npz.open(tmp_path / "model.npz") as stored:
        np.testing.assert_array_equal(stored.elements("w", index), array[index])


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
