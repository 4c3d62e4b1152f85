"""checkpoint/formats/npz.py: arrays are written block by block, and whole or not at all."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from jaxtune.checkpoint.formats import npz
from jaxtune.checkpoint.formats.npz import Npz
from jaxtune.checkpoint.formats.tensors import CheckpointError
from tests.checkpoint.formats.arrays import assert_same, random_array
from tests.checkpoint.formats.npz_files import BFLOAT16, LAYERS, all_dtypes, write


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
        ([np.zeros(2)], "found a block of float64"),
        ([np.zeros(2, np.float32)], "24 bytes, found 8"),
        ([np.zeros(4, np.float32)] * 2, "24 bytes, found more"),
        ([], "24 bytes, found 0"),
    ],
)
def test_blocks_must_be_as_announced(tmp_path, blocks, problem):
    with pytest.raises(CheckpointError, match=rf"w: expected float32\[2, 3\].*{problem}"):
        npz.write(tmp_path / "m.npz", {"w": ((2, 3), np.float32)}, lambda name: blocks)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(CheckpointError, match=r"w has dtype float8_e5m2; an \.npz file holds"):
        write(tmp_path / "m.npz", {"w": np.zeros(2, ml_dtypes.float8_e5m2)})
    with pytest.raises(CheckpointError, match=r"m\.bin: expected a name that ends in \.npz"):
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
