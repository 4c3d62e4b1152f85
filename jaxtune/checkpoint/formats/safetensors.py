"""Reads the headers of safetensors checkpoints, and streams tensors into new ones.

A safetensors file is an 8-byte little-endian header length, the header (that many bytes of JSON
with each tensor's dtype, shape and byte offsets), and then the tensors' bytes end to end.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
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
from jaxtune.checkpoint.formats.writing import blocks, full_disk_explained
from jaxtune.checkpoint.formats.writing import new_directory as new_directory
from jaxtune.checkpoint.formats.writing import refuse_existing as refuse_existing
from jaxtune.display.errors import UserError
from jaxtune.files import whole_file

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

MAX_HEADER_BYTES = 100_000_000  # the limit of the reference reader
LONGEST_FILE = 255  # bytes of a file's name
SHARD = re.compile(r"-\d{5}-of-(\d{5})\.safetensors$")
PICKLES = ("pytorch_model*.bin", "adapter_model*.bin", "*.pth", "*.pt")
ZIP = (
    "a zip archive. If numpy.savez wrote it, give it a name that ends in .npz; what torch.save"
    " writes is a pickle, which jaxtune does not read because loading one can run code"
)
PYTORCH = {"format": "pt"}  # transformers reads it: the tensors are in PyTorch's layout

Scan = tuple[dict[str, TensorInfo], dict[str, str]]  # tensors by name, and the files' metadata
Planned = tuple[tuple[int, ...], np.dtype]  # shape and dtype of a tensor to write


class Safetensors(Tensors):
    """Tensors of a safetensors checkpoint, in one or more files."""

    format = "safetensors"

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Opens a checkpoint's directory or a single .safetensors file; reads only the headers."""
        path = Path(path).expanduser()
        if path.is_file():
            return cls(*_scan(path))
        if not path.is_dir():
            problem = "is not a regular file" if path.exists() else "no such file or directory"
            raise CheckpointError(f"{path}: {problem}")
        if (path / SINGLE_NAME).is_file():
            return cls(*_scan(path / SINGLE_NAME))
        if (path / INDEX_NAME).is_file():
            return cls(*_scan_shards(path / INDEX_NAME))
        return cls(*_scan(_lone_file(path)))


def write_sharded(
    directory: str | os.PathLike[str],
    tensors: Mapping[str, tuple[tuple[int, ...], Any]],
    produce: Callable[[str], np.ndarray],
    max_shard_bytes: int = 5_000_000_000,
    metadata: Mapping[str, str] = PYTORCH,
) -> list[Path]:
    """Streams tensors into one weight file, or into shards and their index.

    Args:
      directory: existing directory to write into, with the file names that transformers expects.
      tensors: shape and dtype of every tensor by name. Their order is kept, except that wider
        dtypes come first within a file.
      produce: returns a tensor, given its name. It is called once per tensor, and the array is
        freed before the next call.
      max_shard_bytes: most bytes of tensors per file; a larger tensor gets a file to itself.
      metadata: `__metadata__` of every file.

    Returns:
      The weight files in order, without the index.
    """
    directory = Path(directory)
    plan = {name: _planned(name, shape, dtype) for name, (shape, dtype) in tensors.items()}
    shards = _split(plan, max_shard_bytes)
    files = [directory / name for name in _shard_names(len(shards))]
    needed = sum(nbytes(*tensor) for tensor in plan.values())
    with full_disk_explained(directory, needed):
        for file, shard in zip(files, shards, strict=True):
            with whole_file(file) as out:
                out.write(_header(shard, metadata))
                for name, tensor in shard.items():
                    _write_tensor(out, name, tensor, produce)
        if len(files) > 1:
            _write_index(directory / INDEX_NAME, files, shards, needed)
    return files


# Reading


def _scan(path: Path) -> Scan:
    if not path.is_file():
        problem = "is not a regular file" if path.exists() else "no such file"
        raise CheckpointError(f"{path}: {problem}")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = _header_length(path, file.read(64), size)
        file.seek(8)
        entries = _json_object(path, file.read(length), "its header")
    metadata = entries.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise CheckpointError(
            f"{path}: expected an object as __metadata__, found {shown(metadata)}"
        )
    tensors = {name: _tensor_info(path, name, entries[name], 8 + length) for name in entries}
    _check_layout(path, tensors.values(), 8 + length, size)
    return tensors, metadata


def _header_length(path: Path, first: bytes, size: int) -> int:
    """Returns the header length in bytes, given the first 64 bytes of a file and its size."""
    if size == 0:
        raise CheckpointError(f"{path} is empty: download or copy it again")
    # A valid length may begin with any byte, so the check is for the brace that opens the JSON.
    if first[8:9] not in (b"{", b""):
        kind = ZIP if first.startswith(b"PK") else impostor(first)
        raise CheckpointError(f"{path} is not a safetensors file: found {kind or 'no header'}")
    if size < 8:
        raise CheckpointError(
            f"{path} is {size} bytes long, too short for a safetensors file: download or copy it"
            " again"
        )
    length = int.from_bytes(first[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path} declares a header of {length:,} bytes, above the limit of"
            f" {MAX_HEADER_BYTES:,}: it is damaged, or not a safetensors file"
        )
    if 8 + length > size:
        raise _truncated(path, size, 8 + length)
    return length


def _truncated(path: Path, size: int, promised: int) -> CheckpointError:
    return CheckpointError(
        f"{path} is truncated: its header describes {promised:,} bytes, but the file has"
        f" {size:,}; download or copy it again"
    )


def _json_object(path: Path, text: bytes, part: str) -> dict[str, Any]:
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {part} is not valid JSON ({shown(str(error))})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: {part} is a JSON {type(value).__name__}, not an object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns a JSON object, of whose equal keys `json` would keep the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise UserError(f"the key {shown(twice)} occurs twice")
    return found


def _tensor_info(path: Path, name: str, entry: Any, data: int) -> TensorInfo:
    """Parses one header entry, whose offsets count from the byte `data` of the file."""
    check_name(path, name)
    try:
        kind, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise CheckpointError(
            f"{path}: tensor {name}: expected a dtype, a shape and two data_offsets, found"
            f" {shown(entry)}"
        ) from None
    if not isinstance(kind, str) or kind not in DTYPES:
        raise CheckpointError(
            f"{path}: tensor {name} has dtype {shown(kind)}; jaxtune reads {', '.join(DTYPES)}"
        )
    if not all(type(number) is int and number >= 0 for number in (*shape, start, stop)):
        raise CheckpointError(
            f"{path}: tensor {name} has shape {shown(entry['shape'])} and offsets"
            f" {shown([start, stop])}: expected non-negative integers"
        )
    check_shape(f"{path}: tensor {name}", shape)
    if stop - start != nbytes(shape, DTYPES[kind]):
        raise CheckpointError(
            f"{path}: tensor {name} spans {stop - start:,} bytes, but {kind} of shape"
            f" {list(shape)} takes {nbytes(shape, DTYPES[kind]):,}: the header is damaged"
        )
    return TensorInfo(name, DTYPES[kind], shape, path, data + start, data + stop)


def _check_layout(path: Path, tensors: Iterable[TensorInfo], data: int, size: int) -> None:
    """Raises unless the tensors lie end to end from the byte `data` to the end of the file."""
    expected = data
    for info in sorted(tensors, key=lambda info: (info.start, info.stop)):
        if info.start != expected:
            problem = "overlaps the one before it" if info.start < expected else "leaves a gap"
            raise CheckpointError(
                f"{path}: tensor {info.name} {problem}: expected its data at byte {expected:,},"
                f" found {info.start:,}. The header is damaged"
            )
        expected = info.stop
    if size < expected:
        raise _truncated(path, size, expected)
    if size > expected:
        raise CheckpointError(
            f"{path} is {size:,} bytes, but its header accounts for only {expected:,}: it is"
            " damaged; download or copy it again"
        )


def _scan_shards(index: Path) -> Scan:
    """Returns the tensors of all the files that an index names, and their merged metadata."""
    weight_map = _weight_map(index)
    files = sorted(set(weight_map.values()))
    missing = [file for file in files if not (index.parent / file).is_file()]
    if missing:
        raise CheckpointError(
            f"{index}: {len(missing)} of the {len(files)} files that it lists are missing:"
            f" {some(missing)}. Download or copy them again"
        )
    headers = {file: _scan(index.parent / file) for file in files}
    lost = [f"{name} ({file})" for name, file in weight_map.items() if name not in headers[file][0]]
    if lost:
        raise CheckpointError(
            f"{index}: {len(lost)} of the tensors that it lists are missing from their files:"
            f" {some(lost)}. Index and files are from different versions: download both again"
        )
    metadata = {key: text for _, found in headers.values() for key, text in found.items()}
    return {name: headers[file][0][name] for name, file in weight_map.items()}, metadata


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = _json_object(index, index.read_bytes(), "the index").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map from tensor names to file names")
    # Only plain file names are accepted: an index must not lead to files outside its directory.
    outside = [str(file) for file in weight_map.values() if not _is_plain(file)]
    if outside:
        raise CheckpointError(f"{index} names files outside its directory: {some(outside)}")
    return weight_map


def _is_plain(file: Any) -> bool:
    """Whether an index names a file in its own directory, by a name that a system accepts."""
    if not isinstance(file, str) or not file.isprintable() or len(file.encode()) > LONGEST_FILE:
        return False
    return Path(file).name == file != ".."


def _lone_file(directory: Path) -> Path:
    """Returns the only .safetensors file of a directory without the standard file names."""
    found = sorted(directory.glob("*.safetensors"))
    names = some([file.name for file in found])
    if len(found) > 1:
        raise CheckpointError(
            f"{directory} has {names} but no {INDEX_NAME}, the index of its shards: download or"
            " copy it too, or give the path of one file"
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
            f"{directory} has its weights only as pickles ({some(pickles)}), which jaxtune does not"
            " read because loading one can run code. Use the safetensors version of this"
            " checkpoint, or, if you trust it, convert it: load it with transformers"
            " (from_pretrained) and write it again with save_pretrained"
        )
    found = sorted(file.name for file in directory.iterdir())
    return CheckpointError(
        f"{directory} has no weights: expected {SINGLE_NAME}, or {INDEX_NAME} and the files it"
        f" lists, found {some(found) or 'an empty directory'}"
    )


# Writing


def _planned(name: str, shape: tuple[int, ...], dtype: Any) -> Planned:
    dtype = np.dtype(dtype)
    if dtype not in DTYPE_NAMES:
        raise CheckpointError(
            f"tensor {name} has dtype {dtype}; safetensors holds {', '.join(map(str, DTYPE_NAMES))}"
        )
    return tuple(map(int, shape)), dtype


def _split(plan: dict[str, Planned], max_bytes: int) -> list[dict[str, Planned]]:
    """Fills one shard after another; a tensor above the limit gets a shard to itself."""
    shards: list[dict[str, Planned]] = [{}]
    room = max_bytes
    for name, tensor in plan.items():
        if nbytes(*tensor) > room and shards[-1]:
            shards.append({})
            room = max_bytes
        shards[-1][name] = tensor
        room -= nbytes(*tensor)
    # Widest dtypes first, so that every tensor starts at a multiple of its element size.
    return [dict(sorted(shard.items(), key=lambda item: -item[1][1].itemsize)) for shard in shards]


def _shard_names(count: int) -> list[str]:
    if count == 1:
        return [SINGLE_NAME]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _header(shard: dict[str, Planned], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for name, (shape, dtype) in shard.items():
        stop = start + nbytes(shape, dtype)
        entries[name] = {
            "dtype": DTYPE_NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [start, stop],
        }
        start = stop
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data start at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text


def _write_tensor(
    out: IO[bytes], name: str, tensor: Planned, produce: Callable[[str], np.ndarray]
) -> None:
    array = np.asarray(produce(name))
    shape, dtype = tensor
    if (array.shape, array.dtype) != tensor:
        raise CheckpointError(
            f"tensor {name}: expected {dtype}{list(shape)}, found {array.dtype}{list(array.shape)}"
        )
    for block in blocks(array):
        out.write(block.reshape(-1).view(np.uint8))


def _write_index(
    path: Path, files: list[Path], shards: list[dict[str, Planned]], total: int
) -> None:
    names = {name: file.name for file, shard in zip(files, shards, strict=True) for name in shard}
    index = {"metadata": {"total_size": total}, "weight_map": names}
    with whole_file(path) as out:
        out.write(json.dumps(index, indent=2, sort_keys=True).encode() + b"\n")
