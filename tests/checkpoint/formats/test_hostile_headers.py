"""Headers that were made to do harm, and random damage: one clear message, at once."""

import io
import json
import os
import random
import re
import time
import zipfile

import numpy as np
import pytest

from jaxtune.checkpoint.formats.npz import Npz
from jaxtune.checkpoint.formats.safetensors import (
    INDEX_NAME,
    CheckpointError,
    Safetensors,
    write_sharded,
)
from tests.checkpoint.formats.npz_files import npy, raw_zip

ARRAYS = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b.bias": np.ones(5, np.float16),
    "c": np.float32(3).reshape(()),
}
ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
VALUES = ["-1", "1e9", "1" + "0" * 19, "0", "NaN", "null", "[]", "{}", '"x"', "4", "9" * 5000]


def with_header(path, header, data=bytes(4)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ({"w": {**ONE, "shape": [10**18]}}, r"has the invalid shape \[1000"),
        ({"w": {**ONE, "shape": [0, 10**18], "data_offsets": [0, 0]}}, "has the invalid shape"),
        ({"w": {**ONE, "shape": [1] * 100}}, r"\[1, 1.*…: expected at most 32 axes"),
        ({"w": {**ONE, "shape": [10**300] * 10_000}}, "has the invalid shape"),
        ({"w": {**ONE, "shape": [-1]}}, "expected non-negative integers"),
        ({"w": {**ONE, "shape": [1.0]}}, "expected non-negative integers"),
        ({"w": {**ONE, "shape": "1"}}, "expected non-negative integers"),
        ({"w": {**ONE, "data_offsets": [4, 8]}}, "leaves a gap"),
        ({"w": {**ONE, "data_offsets": [0, 10**30]}}, "spans 1,000"),
        ({"w": ONE, "v": ONE}, "overlaps the one before it"),
        ({"w": {**ONE, "dtype": "F" + "9" * 5000}}, "has dtype F999.*…; jaxtune reads"),
        ({"w": {**ONE, "dtype": ["F32"]}}, r"has dtype \['F32'\]"),
        ({"w" * 501: ONE}, "expected printable tensor names of at most 500 characters"),
        ({"w\x1b[2J": ONE}, r"expected printable .* found 'w\\x1b\[2J'"),
        ({"w\ud800": ONE}, r"expected printable .* found 'w\\ud800'"),
        ({"w": "x" * 5000}, "two data_offsets, found xxx"),
        ({"w": ONE, "__metadata__": ["x" * 5000]}, "expected an object as __metadata__"),
        (b"[" * 100_000, "not a safetensors file|is not valid JSON"),
        (b'{"w":' + b"[" * 100_000, "is not valid JSON"),
        (b'{"w":' + b'{"w":' * 100_000, "is not valid JSON"),
        (b'{"w": 1, "w": 2}', "the key w occurs twice"),
        (b'{"w": ' + b"9" * 5000 + b"}", "is not valid JSON"),
        (b'{"w\xff": 1}', "is not valid JSON"),
    ],
)
def test_a_safetensors_header_that_does_harm(tmp_path, header, says):
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=says) as refused:
        Safetensors.open(with_header(tmp_path / "model.safetensors", header))
    assert len(str(refused.value)) < 700 and time.monotonic() - start < 5


def test_a_header_length_of_any_size(tmp_path):
    file = tmp_path / "model.safetensors"
    for length in (2**64 - 1, 2**63, 10**8 + 1, 10**8, 100):
        file.write_bytes(length.to_bytes(8, "little") + b"{}")
        with pytest.raises(CheckpointError, match=r"above the limit|is truncated"):
            Safetensors.open(file)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["../model.safetensors"], "names files outside its directory"),
        ([".."], "names files outside its directory"),
        (["/etc/passwd"], "names files outside its directory"),
        (["a\x00b"], r"names files outside its directory: a\\x00b"),
        (["a\ud800"], r"names files outside its directory: a\\ud800"),
        (["é" * 200], "names files outside its directory"),
        ([5], "names files outside its directory: 5"),
        ([f"{number}.safetensors" for number in range(5000)], "5000 of the 5000 .* and 4992 more"),
        (["pipe"], "1 of the 1 files that it lists are missing: pipe"),
    ],
)
def test_an_index_that_does_harm(tmp_path, files, says):
    os.mkfifo(tmp_path / "pipe")
    index = {"weight_map": {f"w{number}": file for number, file in enumerate(files)}}
    (tmp_path / INDEX_NAME).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=says) as refused:
        Safetensors.open(tmp_path)
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("name", ["model.safetensors", "base.npz"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    opened = Npz if name.endswith("npz") else Safetensors
    with pytest.raises(CheckpointError, match="is not a regular file"):
        opened.open(tmp_path / name)
    if opened is Safetensors:
        with pytest.raises(CheckpointError, match="is not a regular file"):
            opened.open(tmp_path)


def header_of(shape: str, descr: str = "'<f4'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (npy(header=header_of("(10**9,)")), "has an invalid .npy header"),
        (npy(header=header_of("(1000000000000000000,)")), "has the invalid shape"),
        (npy(header=header_of("(0, 1000000000000000000)")), "has the invalid shape"),
        (npy(header=header_of("(-4,)")), r"has the invalid shape \[-4\]"),
        (npy(header=header_of(f"({'1, ' * 100})")), "has the invalid shape|invalid .npy header"),
        (npy(header=header_of("(" * 3000 + ")" * 3000)), "has an invalid .npy header"),
        (npy(header=header_of("(4,)", "'|O'"), data=b"x" * 16), "holds Python objects as a pickle"),
        (npy(header=header_of("(1,)", "'<V99999'")), "has dtype .*; jaxtune reads"),
    ],
)
def test_an_array_header_that_does_harm(tmp_path, content, says):
    with pytest.raises(CheckpointError, match=says) as refused:
        Npz.open(raw_zip(tmp_path / "base.npz", [("w.npy", content)]))
    assert len(str(refused.value)) < 1000


def test_a_small_archive_that_claims_to_be_large(tmp_path):
    """Its list of members says 1 TB; no memory is taken."""
    content = npy(header=header_of("(250000000000,)"))
    file = raw_zip(tmp_path / "base.npz", [("w.npy", content)], zipfile.ZIP_DEFLATED)
    damaged = bytearray(file.read_bytes())
    start = damaged.rfind(b"PK\x01\x02")
    damaged[start + 24 : start + 28] = (0xFFFFFFF0).to_bytes(4, "little")
    file.write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"more than its .* compressed ones can hold"):
        Npz.open(file)


def damaged(whole: bytes, chosen: random.Random) -> bytes:
    """The same bytes with a few of them changed, removed, repeated or cut off."""
    data = bytearray(whole)
    for _ in range(chosen.choice([1, 1, 2, 5])):
        at = chosen.randrange(len(data) + 1)
        match chosen.randrange(5):
            case 0 | 1 if at < len(data):
                data[at] = chosen.choice([0, 255, data[at] ^ 1 << chosen.randrange(8)])
            case 2:
                del data[at : at + chosen.randint(1, 8)]
            case 3:
                data[at:at] = chosen.randbytes(chosen.randint(1, 8))
            case 4:
                del data[chosen.randrange(len(data) + 1) :]
    return bytes(data)


def renumbered(header: bytes, chosen: random.Random) -> bytes:
    """A header with one of its numbers replaced by another value."""
    number = chosen.choice(list(re.finditer(rb"\d+", header)))
    return header[: number.start()] + chosen.choice(VALUES).encode() + header[number.end() :]


def mutations(count: int, tmp_path):
    """Yields a kind of file and damaged bytes of it."""
    write_sharded(
        tmp_path, {name: (x.shape, x.dtype) for name, x in ARRAYS.items()}, ARRAYS.__getitem__
    )
    whole = (tmp_path / "model.safetensors").read_bytes()
    stop = 8 + int.from_bytes(whole[:8], "little")
    archives = []
    for save in (np.savez, np.savez_compressed):
        save(out := io.BytesIO(), **ARRAYS)
        archives.append(out.getvalue())
    chosen = random.Random(15)
    for _ in range(count):
        yield Safetensors, damaged(whole, chosen)
        header = chosen.choice([damaged, renumbered])(whole[8:stop], chosen)
        yield Safetensors, len(header).to_bytes(8, "little") + header + whole[stop:]
        yield Npz, damaged(chosen.choice(archives), chosen)


def test_random_damage_is_refused_or_does_no_harm(tmp_path):
    outcomes, longest = {"read": 0, "refused": 0}, 0
    for opened, data in mutations(200, tmp_path):
        file = tmp_path / f"damaged.{opened.format}"
        file.write_bytes(data)
        try:
            with opened.open(file) as stored:
                for name in stored.tensors:
                    stored.read(name).copy()
            outcomes["read"] += 1
        except CheckpointError as problem:
            outcomes["refused"] += 1
            longest = max(longest, len(str(problem)))
    assert sum(outcomes.values()) == 600 and outcomes["refused"] > 450 and longest < 1000
