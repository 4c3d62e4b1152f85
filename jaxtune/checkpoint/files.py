"""Safetensors checkpoints as bytes on disk: headers, memory-mapped reading, streamed writing.

A safetensors file is an 8-byte little-endian length, that many bytes of JSON which give each
tensor's dtype, shape and place, and then the tensors' bytes end to end.
"""

import contextlib
import difflib
import errno
import glob
import json
import math
import mmap
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import ml_dtypes
import numpy as np

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"

DTYPES = {
    name: np.dtype(kind)
    for name, kind in {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "I64": np.int64,
        "I32": np.int32,
        "I16": np.int16,
        "I8": np.int8,
        "U64": np.uint64,
        "U32": np.uint32,
        "U16": np.uint16,
        "U8": np.uint8,
        "BOOL": np.bool_,
    }.items()
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

MAX_HEADER_BYTES = 100_000_000  # what the reference reader accepts, too
BLOCK_BYTES = 64 * 2**20  # how much of a transposed tensor is copied at a time
SHARD = re.compile(r"-\d{5}-of-(\d{5})\.safetensors$")
PROCESS = re.compile(r"[1-9]\d{0,8}")  # an id; longer ones os.kill would not take
PICKLES = ("pytorch_model*.bin", "adapter_model*.bin", "*.pth", "*.pt")
PYTORCH = {"format": "pt"}  # transformers asks whose layout the tensors have
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

# What else is often found under a .safetensors name, by its first bytes.
IMPOSTORS = {
    b"PK": "a zip archive, as torch.save or numpy.savez writes; jaxtune reads no pickle, because"
    " loading one can run code",
    b"\x80": "a Python pickle, which jaxtune does not read because loading one can run code",
    b"version https://git-lfs": "a Git LFS pointer instead of the data: run `git lfs pull`",
    b"GGUF": "a GGUF file: use the safetensors version of this checkpoint",
    b"<": "a web page, perhaps an error page that was saved instead of the file",
}


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written as asked."""


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: `start` and `stop` are byte offsets from the start of `file`."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """How many bytes the tensor takes."""
        return self.stop - self.start


Scan = tuple[dict[str, TensorInfo], dict[str, str]]  # tensors by name, and the file's metadata
Planned = tuple[tuple[int, ...], np.dtype]  # a tensor still to be written


class Safetensors:
    """The tensors of one checkpoint, in one file or many, read through memory maps."""

    def __init__(self, tensors: dict[str, TensorInfo], metadata: dict[str, str]):
        self.tensors = tensors
        self.metadata = metadata
        self._maps: dict[Path, mmap.mmap] = {}

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """A checkpoint's directory, or one .safetensors file; reads headers only."""
        path = Path(path).expanduser()
        if path.is_file():
            return cls(*_scan(path))
        if not path.is_dir():
            raise CheckpointError(f"{path}: no such file or directory")
        if (path / SINGLE_NAME).is_file():
            return cls(*_scan(path / SINGLE_NAME))
        if (path / INDEX_NAME).is_file():
            return cls(*_scan_shards(path / INDEX_NAME))
        return cls(*_scan(_lone_file(path)))

    def read(self, name: str) -> np.ndarray:
        """One tensor as a read-only view of the file; its pages are read when touched."""
        info = self._info(name)
        return np.ndarray(info.shape, info.dtype, self._map(info.file), info.start)

    def release(self, name: str) -> None:
        """Let the memory of a tensor go; views of it stay valid and read the file again."""
        info = self._info(name)
        mapped = self._maps.get(info.file)
        if mapped is None or not hasattr(mmap, "MADV_DONTNEED"):  # Windows has none
            return
        first = -(-info.start // mmap.PAGESIZE) * mmap.PAGESIZE
        last = info.stop // mmap.PAGESIZE * mmap.PAGESIZE
        if first < last:
            mapped.madvise(mmap.MADV_DONTNEED, first, last - first)

    def close(self) -> None:
        """Let go of the files; arrays that were read stay valid."""
        # Never mmap.close(): NumPy's views do not hold it back, and reading them would then crash.
        # A map closes by itself with the last array that views it.
        self._maps = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _info(self, name: str) -> TensorInfo:
        if name in self.tensors:
            return self.tensors[name]
        close = difflib.get_close_matches(name, self.tensors, n=1)
        hint = f"; the nearest name is {close[0]}" if close else ""
        raise CheckpointError(f"the checkpoint has no tensor {name}{hint}")

    def _map(self, file: Path) -> mmap.mmap:
        if file not in self._maps:
            with file.open("rb") as opened:
                self._maps[file] = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[file]


def write_sharded(
    directory: str | os.PathLike[str],
    tensors: Mapping[str, tuple[tuple[int, ...], Any]],
    produce: Callable[[str], np.ndarray],
    max_shard_bytes: int = 5_000_000_000,
    metadata: Mapping[str, str] = PYTORCH,
) -> list[Path]:
    """Stream tensors of the given (shape, dtype) into weight files; returns those files.

    `produce(name)` is called once a tensor, and its array is let go before the next call. Tensors
    keep the given order, except that wider dtypes come first within a file.
    """
    directory = Path(directory)
    plan = {name: _planned(name, shape, dtype) for name, (shape, dtype) in tensors.items()}
    shards = _split(plan, max_shard_bytes)
    files = [directory / name for name in _shard_names(len(shards))]
    needed = sum(_nbytes(*tensor) for tensor in plan.values())
    with _full_disk_explained(directory, needed):
        for file, shard in zip(files, shards, strict=True):
            with _new_file(file) as out:
                out.write(_header(shard, metadata))
                for name, tensor in shard.items():
                    _write_tensor(out, name, tensor, produce)
        if len(files) > 1:
            _write_index(directory / INDEX_NAME, files, shards, needed)
    return files


@contextlib.contextmanager
def new_directory(
    final: str | os.PathLike[str], overwrite: bool = False, mark: str = "config.json"
) -> Iterator[Path]:
    """A temporary sibling to write into, which becomes `final` only if the block succeeds.

    With `overwrite`, `final` may be an earlier checkpoint, told by the file `mark` in it; no other
    directory is ever replaced.
    """
    final = Path(final).expanduser().resolve()  # through a link, to rename within one disk
    refuse_existing(final, overwrite, mark)
    _remove_leftovers(final)
    partial = final.with_name(f"{_partial_stem(final)}{os.getpid()}")
    _make_directory(partial, final)
    try:
        yield partial
        _sync_tree(partial)
        _move_into_place(partial, final, overwrite, mark)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise _full_disk(partial, final) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # moved away already where all went well


# Reading


def _scan(path: Path) -> Scan:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = _header_length(path, file.read(64), size)
        file.seek(8)
        entries = _json_object(path, file.read(length), "its header")
    metadata = entries.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{path}: its __metadata__ is {metadata}, not an object")
    tensors = {name: _tensor_info(path, name, entries[name], 8 + length) for name in entries}
    _check_layout(path, tensors.values(), 8 + length, size)
    return tensors, metadata


def _header_length(path: Path, first: bytes, size: int) -> int:
    """The length that the first bytes of a file give, if they are those of a safetensors file."""
    if size == 0:
        raise CheckpointError(f"{path} is empty: download or copy it again")
    # A valid length may begin with any byte, so the brace after it decides.
    if first[8:9] not in (b"{", b""):
        kinds = [kind for magic, kind in IMPOSTORS.items() if first.startswith(magic)]
        raise CheckpointError(f"{path} is no safetensors file: {(kinds or ['no header found'])[0]}")
    if size < 8:
        raise CheckpointError(
            f"{path} is {size} bytes long, too short for a safetensors file: download or copy it"
            " again"
        )
    length = int.from_bytes(first[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path} gives its header {length:,} bytes, where {MAX_HEADER_BYTES:,} is the most:"
            " it is damaged, or no safetensors file"
        )
    if 8 + length > size:
        raise _truncated(path, size, 8 + length)
    return length


def _truncated(path: Path, size: int, promised: int) -> CheckpointError:
    return CheckpointError(
        f"{path} is truncated: the file is {size:,} bytes, its header promises {promised:,}:"
        " download or copy it again"
    )


def _json_object(path: Path, text: bytes, part: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {part} is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: {part} is a JSON {type(value).__name__}, not an object")
    return value


def _tensor_info(path: Path, name: str, entry: Any, data: int) -> TensorInfo:
    """One entry of a header whose offsets count from the byte `data` of the file."""
    try:
        kind, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise CheckpointError(
            f"{path}: tensor {name} needs a dtype, a shape and two data_offsets, found {entry}"
        ) from None
    if not isinstance(kind, str) or kind not in DTYPES:
        raise CheckpointError(
            f"{path}: tensor {name} has dtype {kind}; jaxtune reads {', '.join(DTYPES)}"
        )
    if not all(type(number) is int and number >= 0 for number in (*shape, start, stop)):
        raise CheckpointError(
            f"{path}: tensor {name} has shape {entry['shape']} and offsets [{start}, {stop}];"
            " whole numbers from 0 were expected"
        )
    if stop - start != _nbytes(shape, DTYPES[kind]):
        raise CheckpointError(
            f"{path}: tensor {name} spans {stop - start:,} bytes, but {kind} of shape"
            f" {list(shape)} takes {_nbytes(shape, DTYPES[kind]):,}: the header is damaged"
        )
    return TensorInfo(name, DTYPES[kind], shape, path, data + start, data + stop)


def _check_layout(path: Path, tensors: Iterable[TensorInfo], data: int, size: int) -> None:
    """Tensors must lie end to end from the byte `data` to the end of the file."""
    expected = data
    for info in sorted(tensors, key=lambda info: (info.start, info.stop)):
        if info.start != expected:
            problem = "overlaps the one before it" if info.start < expected else "leaves a gap"
            raise CheckpointError(
                f"{path}: tensor {info.name} {problem}: its data starts at byte {info.start:,},"
                f" where {expected:,} was expected. The header is damaged"
            )
        expected = info.stop
    if size < expected:
        raise _truncated(path, size, expected)
    if size > expected:
        raise CheckpointError(
            f"{path} is {size:,} bytes, but its header accounts for only {expected:,}: it is"
            " damaged; download or copy it again"
        )


def _nbytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return math.prod(shape) * dtype.itemsize


def _scan_shards(index: Path) -> Scan:
    """The tensors of all files that an index names."""
    weight_map = _weight_map(index)
    files = sorted(set(weight_map.values()))
    missing = [file for file in files if not (index.parent / file).is_file()]
    if missing:
        raise CheckpointError(
            f"{index} names {len(files)} files, and {len(missing)} of them are not there:"
            f" {', '.join(missing)}. Download or copy them again"
        )
    headers = {file: _scan(index.parent / file) for file in files}
    lost = [f"{name} ({file})" for name, file in weight_map.items() if name not in headers[file][0]]
    if lost:
        raise CheckpointError(
            f"{index} promises {len(lost)} tensors that their files lack: {_some(lost)}."
            " Index and files are of different versions: download both again"
        )
    metadata = {key: text for _, found in headers.values() for key, text in found.items()}
    return {name: headers[file][0][name] for name, file in weight_map.items()}, metadata


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = _json_object(index, index.read_bytes(), "the index").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map from tensor names to file names")
    # Only plain names: an index must not lead to files outside its directory.
    odd = [str(file) for file in weight_map.values() if Path(str(file)).name != file]
    if odd:
        raise CheckpointError(f"{index} names files outside its directory: {_some(odd)}")
    return weight_map


def _lone_file(directory: Path) -> Path:
    """The only .safetensors file of a directory that has no usual name for its weights."""
    found = sorted(directory.glob("*.safetensors"))
    names = _some([file.name for file in found])
    if len(found) > 1:
        raise CheckpointError(
            f"{directory} has {names} but no {INDEX_NAME}, which says how they belong together:"
            " download or copy it too, or name one file"
        )
    if not found:
        raise _no_weights(directory)
    shard = SHARD.search(found[0].name)
    if shard and int(shard[1]) > 1:
        raise CheckpointError(
            f"{directory} has only {names}, one of {int(shard[1])} shards: download or copy the"
            f" others and {INDEX_NAME}"
        )
    return found[0]


def _no_weights(directory: Path) -> CheckpointError:
    pickles = sorted({file.name for pattern in PICKLES for file in directory.glob(pattern)})
    if pickles:
        return CheckpointError(
            f"{directory} has its weights only as pickle ({_some(pickles)}), and jaxtune reads no"
            " pickle because loading one can run code. Take the safetensors version of this"
            " checkpoint, or convert it where you trust it: load it with transformers"
            " (from_pretrained) and write it again with save_pretrained"
        )
    found = sorted(file.name for file in directory.iterdir())
    return CheckpointError(
        f"{directory} has no weights: {SINGLE_NAME}, or {INDEX_NAME} and the files it names, was"
        f" expected; found {_some(found) or 'an empty directory'}"
    )


def _some(names: list[str], most: int = 8) -> str:
    """Names for an error message, cut off after the first few."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# Writing


def _planned(name: str, shape: tuple[int, ...], dtype: Any) -> Planned:
    dtype = np.dtype(dtype)
    if dtype not in DTYPE_NAMES:
        raise CheckpointError(
            f"tensor {name} has dtype {dtype}; safetensors holds {', '.join(map(str, DTYPE_NAMES))}"
        )
    return tuple(map(int, shape)), dtype


def _split(plan: dict[str, Planned], max_bytes: int) -> list[dict[str, Planned]]:
    """Fill one shard after another; a tensor above the limit gets a shard to itself."""
    shards: list[dict[str, Planned]] = [{}]
    room = max_bytes
    for name, tensor in plan.items():
        if _nbytes(*tensor) > room and shards[-1]:
            shards.append({})
            room = max_bytes
        shards[-1][name] = tensor
        room -= _nbytes(*tensor)
    # Widest dtypes first, so that every tensor starts at a multiple of its element size.
    return [dict(sorted(shard.items(), key=lambda item: -item[1][1].itemsize)) for shard in shards]


def _shard_names(count: int) -> list[str]:
    if count == 1:
        return [SINGLE_NAME]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


@contextlib.contextmanager
def _full_disk_explained(directory: Path, needed: int) -> Iterator[None]:
    free = shutil.disk_usage(directory).free
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise CheckpointError(
            f"{directory}: the disk is full: the weights need {needed:,} bytes, and {free:,} were"
            " free before. Free some space or choose a directory on another disk"
        ) from None


@contextlib.contextmanager
def _new_file(final: Path) -> Iterator[IO[bytes]]:
    """A file that gets its final name only once it is whole and on the disk."""
    partial = final.with_name(f"{final.name}.partial")
    try:
        with partial.open("wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        partial.replace(final)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _header(shard: dict[str, Planned], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for name, (shape, dtype) in shard.items():
        stop = start + _nbytes(shape, dtype)
        entries[name] = {
            "dtype": DTYPE_NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [start, stop],
        }
        start = stop
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data start on a multiple of 8
    return len(text).to_bytes(8, "little") + text


def _write_tensor(
    out: IO[bytes], name: str, tensor: Planned, produce: Callable[[str], np.ndarray]
) -> None:
    array = np.asarray(produce(name))
    shape, dtype = tensor
    if (array.shape, array.dtype) != tensor:
        raise CheckpointError(
            f"tensor {name} was announced as {dtype}{list(shape)} but came as"
            f" {array.dtype}{list(array.shape)}"
        )
    for block in _blocks(array):
        out.write(block.reshape(-1).view(np.uint8))


def _blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Contiguous pieces in order, so that a transposed tensor is never copied whole."""
    if array.flags.c_contiguous:
        yield array
        return
    rows = max(1, BLOCK_BYTES // array[0].nbytes)
    for start in range(0, len(array), rows):
        yield np.ascontiguousarray(array[start : start + rows])


def _write_index(
    path: Path, files: list[Path], shards: list[dict[str, Planned]], total: int
) -> None:
    names = {name: file.name for file, shard in zip(files, shards, strict=True) for name in shard}
    index = {"metadata": {"total_size": total}, "weight_map": names}
    with _new_file(path) as out:
        out.write(json.dumps(index, indent=2, sort_keys=True).encode() + b"\n")


def refuse_existing(final: Path, overwrite: bool, mark: str = "config.json") -> None:
    """Stop where writing would destroy what is there: with `overwrite`, all but a checkpoint."""
    if final.exists() and not final.is_dir():
        raise CheckpointError(f"{final} is a file, and a directory is to be written: move it away")
    found = sorted(final.iterdir()) if final.is_dir() else []
    if found and not overwrite:
        raise CheckpointError(
            f"{final} already exists and is not empty: remove it, choose another directory, or"
            " replace it with overwrite=True"
        )
    if odd := _why_no_checkpoint(found, mark):
        raise CheckpointError(
            f"{final} does not look like a checkpoint ({odd}), and overwrite=True replaces only a"
            f" directory that has {mark} and nothing but plain files: remove it yourself, or"
            " choose another directory"
        )


def _why_no_checkpoint(found: list[Path], mark: str) -> str:
    """Why a directory with this content is no checkpoint; nothing if it is one, or is empty."""
    if directories := [path.name for path in found if not path.is_file()]:
        return f"it holds {_some(directories)}"
    if found and mark not in [path.name for path in found]:
        return f"it has no {mark}, but {_some([path.name for path in found])}"
    return ""


def _partial_stem(final: Path) -> str:
    """What precedes the process in a temporary name; a shared disk has processes of many hosts."""
    return f".{final.name}.partial-{socket.gethostname()}-"


def _remove_leftovers(final: Path) -> None:
    """Free the disk of what processes left that were killed while they wrote this directory."""
    for path in final.parent.glob(f"{glob.escape(_partial_stem(final))}*"):
        process = path.name.rpartition("-")[2]
        if PROCESS.fullmatch(process) and not _runs(int(process)):
            shutil.rmtree(path, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)  # sends nothing
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is someone else's
    return True


def _make_directory(partial: Path, final: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)  # a killed process may have had the same id
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise CheckpointError(
            f"{final} cannot be written: {error.strerror} ({error.filename})"
        ) from None


def _full_disk(partial: Path, final: Path) -> CheckpointError:
    written = sum(path.lstat().st_size for path in partial.rglob("*"))
    free = shutil.disk_usage(partial).free + written
    return CheckpointError(
        f"{final}: the disk is full: more than {written:,} bytes are needed, and {free:,} are free"
        " without them. Nothing was kept. Free some space or choose a directory on another disk"
    )


def _sync_tree(directory: Path) -> None:
    """Bring files and directories to the disk, before a rename makes them the real ones."""
    for path in (*directory.rglob("*"), directory):
        if not path.is_symlink():
            _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # which some network file systems cannot sync
            raise
    finally:
        os.close(descriptor)


def _move_into_place(partial: Path, final: Path, overwrite: bool, mark: str) -> None:
    aside = final.with_name(f".{final.name}.replaced-{os.getpid()}")
    refuse_existing(final, overwrite, mark)  # again: someone may have written there meanwhile
    replaced = final.exists()
    if replaced:
        final.rename(aside)
    try:
        partial.rename(final)
    except BaseException:
        if replaced:
            aside.rename(final)
        raise
    _sync(final.parent)
    shutil.rmtree(aside, ignore_errors=True)
