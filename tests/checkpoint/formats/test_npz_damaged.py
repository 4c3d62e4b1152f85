"""checkpoint/formats/npz.py: files that are something else, or damaged, are refused."""

import zipfile

import ml_dtypes
import numpy as np
import pytest

from jaxtune.checkpoint.formats import npz
from jaxtune.checkpoint.formats.npz import Npz
from jaxtune.checkpoint.formats.tensors import CheckpointError
from tests.checkpoint.formats.arrays import random_array
from tests.checkpoint.formats.npz_files import BFLOAT16, SAVERS, npy, raw_zip


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
        (b"", "an invalid .npy header"),
        (b"text", "an invalid .npy header"),
        (b"\x93NUMPY\x09\x00" + bytes(100), r"unsupported version \(9, 0\)"),
        (npy(header="nonsense"), "an invalid .npy header"),
        (npy(header="[1, 2]"), "an invalid .npy header"),
        (npy(header="(" * 5_000), "an invalid .npy header"),
        (npy(header="-" * 5_000 + "1"), "an invalid .npy header"),
        (npy(header="{[]: 1}"), "an invalid .npy header"),
        (npy(header=header(descr="<f4',"), data=bytes(8)), "an invalid .npy header"),
        (
            npy(header="{'descr': ('<f4',), 'fortran_order': False, 'shape': (2,)}"),
            "invalid .npy header",
        ),
        (npy(header="__import__('os').abort()"), "an invalid .npy header"),
        (npy(header="{" + " " * 20_000 + "}"), "an invalid .npy header"),
        (npy(header=header(descr="nonsense"), data=bytes(8)), "an invalid .npy header"),
        (npy(header=header(order="3"), data=bytes(8)), "an invalid .npy header"),
        (npy(header=header(shape="(-1, -2)"), data=bytes(8)), r"has the invalid shape \[-1, -2\]"),
        (npy(header=header(), data=bytes(7)), r"7 bytes, but float32 of shape \[2\] takes 8"),
        (npy(header=header(), data=bytes(9)), r"9 bytes, but float32 of shape \[2\] takes 8"),
        (
            npy(header=header(shape=f"({2**62}, 4)")),
            r"has the invalid shape \[4611686018427387904, 4\]",
        ),
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
    with pytest.raises(CheckpointError, match=f"array w is compressed with {name}"):
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
        (10, 77, "is compressed with 77"),
        (10, 8, "is damaged"),  # plain bytes that are no deflated ones
        (20, 100, "takes up 100 bytes instead of 144"),
        (24, 100, "takes up 144 bytes instead of 100"),
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
    # Python 3.13 finds by itself that it would reach into the list of members.
    problem = r"array w (lies beyond the end of the file|is damaged \(Overlapped entries)"
    with pytest.raises(CheckpointError, match=problem):
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
    with pytest.raises(CheckpointError, match=r"duplicate members w\.npy"):
        Npz.open(path)


def test_other_archives(tmp_path):
    path = raw_zip(tmp_path / "m.npz", [("w.npy", npy(np.ones(2))), ("thesis.tex", b"")])
    with pytest.raises(
        CheckpointError, match=r"not an \.npz file.*expected members.*found thesis\.tex"
    ):
        Npz.open(path)
