"""Reads and writes checkpoints in NumPy's .npz format, as big_vision uses it.

An .npz file is a zip archive of .npy files, each a short header followed by the array's bytes.
Uncompressed arrays are memory-mapped in place; writing streams the arrays into the file. The .npy
format has no bfloat16: such arrays are stored as two-byte records, as big_vision and `numpy.savez`
store them.
"""

import collections
import contextlib
import io
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Self

import ml_dtypes
import numpy as np

from jaxtune.checkpoint.formats.tensors import (
    CheckpointError,
    TensorInfo,
    Tensors,
    check_name,
    check_shape,
    impostor,
    nbytes,
    shown,
    some,
)
from jaxtune.checkpoint.formats.writing import blocks, new_file
from jaxtune.display.errors import UserError

SUFFIX = ".npy"  # ends the name of every member; not part of the tensor's name
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
RECORD = np.dtype("V2")  # how the .npy format stores bfloat16
PLAIN = tuple(
    map(np.dtype, ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"))
)
READABLE = ", ".join(str(dtype) for dtype in (*PLAIN, BFLOAT16))
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
DEFLATED = 1100  # bytes that one compressed byte can stand for; 1032 by the format
INFLATED_BYTES = 2**20  # decompressed at a time
# Exceptions of zipfile and zlib that mean here that the file is damaged.
DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    UnicodeDecodeError,
)
HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# Exceptions of those readers on a damaged header: their own, and those of ast.literal_eval.
BAD_HEADER = (
    ValueError,
    TypeError,
    IndexError,
    RecursionError,
    MemoryError,
    tokenize.TokenError,
)

ALIGNMENT = 64  # bytes; that of the array data we write, as NumPy aligns it after its headers
LOCAL_HEADER = 30  # bytes of a zip member's local header before its name
ZIP64_EXTRA = 20  # bytes of the extra field for sizes that the header cannot hold: 4 GiB and more
PADDING_ID = 0xD935  # id of an extra field that aligns the data, as in Android packages
LONG_AGO = (1980, 1, 1, 0, 0, 0)  # fixed, so that equal tensors give byte-identical files


class Npz(Tensors):
    """Arrays of one .npz file.

    A compressed array is decompressed whole when it is read, and cached until another array is
    read: a caller that reads and releases it once per layer would otherwise decompress it for every
    layer. Checksums are verified only for compressed arrays, because
    memory-mapped arrays are never read as a whole.
    """

    format = "npz"

    def __init__(self, tensors: dict[str, TensorInfo], metadata: dict[str, str]):
        super().__init__(tensors, metadata)
        self._inflated: dict[str, np.ndarray] = {}  # by name; holds at most one array

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Opens an .npz file; reads only the archive's member list and the header of each array."""
        path = Path(path).expanduser()
        _check_kind(path)
        return cls(_scan(path), {})

    def read(self, name: str) -> np.ndarray:
        """Returns one array, read-only: a view of the file, or of its decompressed bytes."""
        info = self._info(name)
        if name not in self._inflated:
            self._inflated.clear()  # first, so that two are never in memory at once
            if not info.deflated:
                return super().read(name)
            self._inflated[name] = _inflate(info)
        return self._inflated[name]

    def elements(self, name: str, index: tuple[np.ndarray, ...]) -> np.ndarray:
        """Returns single elements of an array, which is decompressed whole if it is compressed."""
        if self._info(name).deflated:
            return self.read(name)[index]
        return super().elements(name, index)

    def close(self) -> None:
        """Drops the memory map and the cache; arrays that were already read stay valid."""
        super().close()
        self._inflated = {}


def write(
    path: str | os.PathLike[str],
    plan: Mapping[str, tuple[tuple[int, ...], Any]],
    produce: Callable[[str], Iterable[np.ndarray]],
    overwrite: bool = False,
) -> Path:
    """Streams tensors into an uncompressed .npz file, which appears only once it is complete.

    Args:
      path: file to write; its name must end in .npz.
      plan: shape and dtype of every tensor by name, in the order in which they are written.
      produce: yields a tensor, given its name, as blocks whose elements concatenated in C order are
        those of the tensor. Each block is freed before the next is requested.
      overwrite: whether an existing file may be replaced.

    Returns:
      The path of the file, with `~` expanded.
    """
    path = Path(path).expanduser()
    if path.suffix != ".npz":
        raise CheckpointError(f"{path}: expected a name that ends in .npz")
    planned = {name: _planned(name, shape, dtype) for name, (shape, dtype) in plan.items()}
    needed = sum(nbytes(*tensor) for tensor in planned.values())
    with new_file(path, needed, overwrite) as out, zipfile.ZipFile(out, "w") as archive:
        for name, (shape, dtype) in planned.items():
            member = _member(name + SUFFIX, out.tell())
            with archive.open(member, "w", force_zip64=True) as opened:
                opened.write(_array_header(shape, dtype))
                _write_blocks(opened, name, shape, dtype, produce(name))
    return path


# Reading


def _check_kind(path: Path) -> None:
    """Raises if a file is not a zip archive, naming what it is instead where that is known."""
    if not path.is_file():
        problem = "is not a regular file" if path.exists() else "no such file"
        problem = "is a directory: name the .npz file" if path.is_dir() else problem
        raise CheckpointError(f"{path}: {problem}")
    with path.open("rb") as file:
        first = file.read(64)
    if not first:
        raise CheckpointError(f"{path} is empty: download or copy it again")
    if first.startswith(b"\x93NUMPY"):
        raise CheckpointError(
            f"{path} is a single array, as numpy.save writes it: expected named arrays, as"
            " numpy.savez writes them"
        )
    if not first.startswith(b"PK"):
        kind = impostor(first) or "no zip archive"
        raise CheckpointError(f"{path} is not an .npz file: found {kind}")
    if not zipfile.is_zipfile(path):
        raise CheckpointError(
            f"{path} is truncated: the list of arrays at its end is missing; download or copy it"
            " again"
        )


@contextlib.contextmanager
def _damage_explained(path: Path, part: str = "") -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        where = f"{path}: {part}" if part else str(path)
        raise CheckpointError(
            f"{where} is damaged ({shown(str(error) or type(error).__name__)}): download or copy it"
            " again"
        ) from None


def _scan(path: Path) -> dict[str, TensorInfo]:
    with _damage_explained(path), zipfile.ZipFile(path) as archive, path.open("rb") as file:
        members = [member for member in archive.infolist() if not _is_junk(member)]
        _check_members(path, members)
        found = [_tensor_info(path, archive, file, member) for member in members]
    return {info.name: info for info in found}


def _is_junk(member: zipfile.ZipInfo) -> bool:
    """Whether a member is a directory or a macOS file that archiving tools add."""
    name = member.filename
    return name.startswith("__MACOSX/") or name.endswith(("/", ".DS_Store"))


def _check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    names = [member.filename for member in members]
    if any(name.endswith("data.pkl") for name in names):
        raise CheckpointError(
            f"{path} is a pickle in a zip archive, as torch.save writes, which jaxtune does not"
            " read because loading one can run code"
        )
    if other := [name for name in names if not name.endswith(SUFFIX)]:
        raise CheckpointError(
            f"{path} is a zip archive but not an .npz file: expected members that end in {SUFFIX},"
            f" found {some(other)}"
        )
    if twice := [name for name, count in collections.Counter(names).items() if count > 1]:
        raise CheckpointError(f"{path} has duplicate members {some(twice)}: save it again")


def _tensor_info(
    path: Path, archive: zipfile.ZipFile, file: IO[bytes], member: zipfile.ZipInfo
) -> TensorInfo:
    name = member.filename.removesuffix(SUFFIX)
    where = f"{path}: array {name}"
    check_name(path, name)
    _check_member(where, member)
    with _damage_explained(path, f"array {name}"), archive.open(member) as opened:
        shape, fortran, stored = _read_header(where, opened)
        header = opened.tell()
    check_shape(where, shape)
    dtype = _dtype(where, stored)
    if header + nbytes(shape, dtype) != member.file_size:
        raise CheckpointError(
            f"{where} has {member.file_size - header:,} bytes, but {dtype} of shape {list(shape)}"
            f" takes {nbytes(shape, dtype):,}: download or copy the file again"
        )
    deflated = member.compress_type != zipfile.ZIP_STORED
    data = _data_start(file, member)
    start, stop = data if deflated else data + header, data + member.compress_size
    if stop > path.stat().st_size:
        raise CheckpointError(f"{where} lies beyond the end of the file: download or copy it again")
    return TensorInfo(name, dtype, shape, path, start, stop, "F" if fortran else "C", deflated)


def _check_member(where: str, member: zipfile.ZipInfo) -> None:
    if member.header_offset < 0:  # zipfile computes offsets back from the end of the file
        raise CheckpointError(
            f"{where} lies before the start of the file, so bytes are missing: download or copy it"
            " again"
        )
    if member.flag_bits & 1:
        raise CheckpointError(f"{where} is encrypted, which jaxtune cannot read: decrypt it")
    if member.compress_type not in METHODS:
        method = zipfile.compressor_names.get(member.compress_type, member.compress_type)
        raise CheckpointError(
            f"{where} is compressed with {method}, which jaxtune cannot read: save it with"
            " numpy.savez or numpy.savez_compressed"
        )
    if member.compress_type == zipfile.ZIP_STORED and member.compress_size != member.file_size:
        raise CheckpointError(
            f"{where} takes up {member.compress_size:,} bytes instead of {member.file_size:,}: the"
            " file is damaged; download or copy it again"
        )
    if member.file_size > DEFLATED * (member.compress_size + 1):
        raise CheckpointError(
            f"{where} declares {member.file_size:,} bytes, more than its {member.compress_size:,}"
            " compressed ones can hold: the file is damaged; download or copy it again"
        )


def _read_header(where: str, file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Returns shape, whether in Fortran order, and the stored dtype; never unpickles anything."""
    try:
        version = np.lib.format.read_magic(file)
        if version not in HEADERS:
            raise UserError(f"unsupported version {version}")
        shape, fortran, dtype = HEADERS[version](file)
    except BAD_HEADER as error:
        raise CheckpointError(f"{where} has an invalid .npy header ({shown(str(error))})") from None
    return shape, fortran, dtype


def _dtype(where: str, stored: np.dtype) -> np.dtype:
    """Returns the dtype of the elements, given the dtype in the .npy header."""
    if stored.hasobject:
        raise CheckpointError(
            f"{where} holds Python objects as a pickle, which jaxtune does not read because loading"
            " one can run code. If you trust it, save it as numbers"
        )
    if stored == RECORD:
        return BFLOAT16
    if stored not in PLAIN:
        raise CheckpointError(f"{where} has dtype {shown(stored.str)}; jaxtune reads {READABLE}")
    return stored


def _data_start(file: IO[bytes], member: zipfile.ZipInfo) -> int:
    """Returns the byte offset of a member's data, which follows its local header.

    The lengths of name and extra field there may differ from those in the archive's directory.
    """
    file.seek(member.header_offset)
    name, extra = struct.unpack_from("<HH", file.read(LOCAL_HEADER), LOCAL_HEADER - 4)
    return member.header_offset + LOCAL_HEADER + name + extra


def _inflate(info: TensorInfo) -> np.ndarray:
    try:
        held = np.empty(info.nbytes, np.uint8)
    except MemoryError:
        raise CheckpointError(
            f"{info.file}: array {info.name} takes {info.nbytes:,} bytes once decompressed, more"
            " than this machine has: save the file with numpy.savez"
        ) from None
    with (
        _damage_explained(info.file, f"array {info.name}"),
        zipfile.ZipFile(info.file) as archive,
        archive.open(info.name + SUFFIX) as opened,
    ):
        _read_header(f"{info.file}: array {info.name}", opened)
        filled = 0
        while block := opened.read(min(INFLATED_BYTES, info.nbytes - filled)):
            held[filled : filled + len(block)] = np.frombuffer(block, np.uint8)
            filled += len(block)
        if filled < info.nbytes:
            raise EOFError("it ends early")
    array = np.ndarray(info.shape, info.dtype, held, order=info.order)
    array.flags.writeable = False
    return array


# Writing


def _planned(name: str, shape: tuple[int, ...], dtype: Any) -> tuple[tuple[int, ...], np.dtype]:
    dtype = np.dtype(dtype)
    if dtype not in (*PLAIN, BFLOAT16):
        raise CheckpointError(f"tensor {name} has dtype {dtype}; an .npz file holds {READABLE}")
    return tuple(map(int, shape)), dtype


def _member(name: str, at: int) -> zipfile.ZipInfo:
    """Returns a member whose header starts at byte `at`, padded so that its data are aligned."""
    member = zipfile.ZipInfo(name, LONG_AGO)
    member.create_system = 3  # Unix, whichever system writes the file
    member.external_attr = 0o644 << 16
    least = struct.pack("<HHH", PADDING_ID, 2, ALIGNMENT)
    length = LOCAL_HEADER + len(name.encode()) + len(least) + ZIP64_EXTRA
    fill = -(at + length) % ALIGNMENT
    member.extra = struct.pack("<HHH", PADDING_ID, 2 + fill, ALIGNMENT) + bytes(fill)
    return member


def _array_header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    stored = RECORD if dtype == BFLOAT16 else dtype
    described = {"descr": stored.str, "fortran_order": False, "shape": shape}
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, described)
    return out.getvalue()


def _write_blocks(
    out: IO[bytes],
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype,
    produced: Iterable[np.ndarray],
) -> None:
    whole, written = nbytes(shape, dtype), 0
    expected = f"tensor {name}: expected {dtype}{list(shape)}"
    for block in produced:
        if block.dtype != dtype:
            raise CheckpointError(f"{expected}, found a block of {block.dtype}")
        written += block.nbytes
        if written > whole:
            break
        for piece in blocks(np.asarray(block)):
            out.write(piece.reshape(-1).view(np.uint8))
        block = piece = None  # freed before the next block is made
    if written != whole:
        amount = "more" if written > whole else f"{written:,}"
        raise CheckpointError(f"{expected}, {whole:,} bytes, found {amount}")
