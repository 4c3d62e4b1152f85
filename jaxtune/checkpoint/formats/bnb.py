"""Reads checkpoints that bitsandbytes quantised to 4 bits, without needing bitsandbytes.

A quantised weight is stored as several tensors:

- `W`: the 4-bit codes, two per byte.
- `W.absmax`: the scale of each block.
- `W.quant_map`: the table of values that the codes stand for.
- `W.quant_state.bitsandbytes__nf4` (or `…__fp4`): shape and block sizes, as JSON in bytes.
- `W.nested_absmax` and `W.nested_quant_map`: only with double quantisation, where `W.absmax` holds
  8-bit codes of the scales. They are the scale of each block of such codes and their table of
  values.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from jaxtune.checkpoint.formats.safetensors import CheckpointError, Safetensors
from jaxtune.checkpoint.formats.tensors import shown
from jaxtune.display.errors import UserError
from jaxtune.quant import KINDS, Quantized, block_scales, grid, pack, plain_scales
from jaxtune.quant.codebooks import dynamic_map

STATE = re.compile(r"(?P<weight>.+)\.quant_state\.bitsandbytes__(?P<kind>\w+)")
BESIDE = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
READ = ("nf4", "fp4")
LARGEST_SIZE = 2**31  # of a matrix along an axis, and of a block


@dataclass(frozen=True)
class Packed:
    """Quantisation parameters of one packed weight, from its quant_state."""

    name: str
    kind: str
    shape: tuple[int, int]  # of the unpacked weight in the published layout: [out, in]
    block: int  # values that share a scale
    nested_block: int | None  # scales that share a nested scale; None: plain float scales
    offset: float  # mean that was subtracted from the scales before they were quantised


def packed(stored: Safetensors) -> dict[str, Packed]:
    """Returns the packed weights of a checkpoint by name; reads only their quant_state tensors."""
    found = [match for name in stored.tensors if (match := STATE.fullmatch(name))]
    return {match["weight"]: _packed(stored, match) for match in found}


def shapes(stored: Safetensors, weights: Mapping[str, Packed]) -> dict[str, tuple[int, ...]]:
    """Returns the unpacked shape of every weight by name, without the quantisation tensors."""
    beside = {f"{name}.{part}" for name in weights for part in BESIDE}
    return {
        name: weights[name].shape if name in weights else info.shape
        for name, info in stored.tensors.items()
        if name not in beside and not STATE.fullmatch(name)
    }


def held_as(stored: Safetensors, weight: Packed, whole: bool = True) -> str:
    """Returns the kind of the `Quantized` that `unpack` makes of a weight, such as "nf4-double".

    The scales stay quantised ("-double") only if the weight is taken whole and its scales are
    quantised as jaxtune quantises its own; otherwise `unpack` returns plain float32 scales.
    """
    return f"{weight.kind}-double" if whole and _is_double(stored, weight) else weight.kind


def unpack(stored: Safetensors, weight: Packed, rows: slice = slice(None)) -> Quantized:
    """Returns a packed weight [in, out] as codes and scales in NumPy arrays, not dequantised.

    `rows` selects some of its outputs, for tensors that hold several of our weights.
    """
    outputs, inputs = weight.shape
    blocks, block, lines = grid((inputs, outputs), weight.block)
    _check_sizes(stored, weight)
    _check_map(stored, f"{weight.name}.quant_map", np.float32(KINDS[weight.kind].table))
    codes = _codes(stored, weight, blocks * block * lines)
    codes = pack(codes.reshape(lines, blocks, block).transpose(1, 2, 0), bits=4)
    scales = stored.read(f"{weight.name}.absmax").reshape(lines, blocks).T
    parts = dict(scales=scales, kind=weight.kind, matrix=(inputs, outputs))
    if weight.nested_block is not None:
        parts |= _nested(stored, weight, scales)
    whole = Quantized(codes=codes, **parts)
    return whole if rows.indices(outputs) == (0, outputs, 1) else _some(whole, weight, rows)


def values(
    stored: Safetensors, weight: Packed, index: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:  # float32[n]
    """Returns single values of a packed weight, given their rows and columns in [out, in]."""
    _check_sizes(stored, weight)
    places = np.ravel_multi_index(index, weight.shape)
    pairs = _bytes(stored, weight.name, places // 2)
    codes = np.where(places % 2, pairs & 15, pairs >> 4)
    blocks = places // weight.block
    scales = _flat(stored, f"{weight.name}.absmax", blocks)
    if weight.nested_block is not None:
        table = stored.read(f"{weight.name}.nested_quant_map").astype(np.float32).reshape(-1)
        peaks = _flat(stored, f"{weight.name}.nested_absmax", blocks // weight.nested_block)
        scales = table[scales] * peaks.astype(np.float32) + np.float32(weight.offset)
    return np.float32(KINDS[weight.kind].table)[codes] * scales.astype(np.float32)


def _flat(stored: Safetensors, name: str, places: np.ndarray) -> np.ndarray:
    return stored.elements(name, np.unravel_index(places, stored.tensors[name].shape))


def _bytes(stored: Safetensors, name: str, places: np.ndarray) -> np.ndarray:  # uint8[n]
    """Returns single bytes of a tensor, whose dtype may be a wider one."""
    size = stored.tensors[name].dtype.itemsize
    held = _flat(stored, name, places // size).view(np.uint8).reshape(-1, size)
    return held[np.arange(len(places)), places % size]


def _packed(stored: Safetensors, match: re.Match) -> Packed:
    name, kind = match["weight"], match["kind"]
    if kind not in READ:
        raise CheckpointError(
            f"{name} is in the bitsandbytes format {kind!r}: expected one of {', '.join(READ)}"
        )
    missing = [each for each in (name, f"{name}.absmax") if each not in stored.tensors]
    if missing:
        raise CheckpointError(f"the checkpoint has {match.string} but no tensor {missing[0]}")
    try:
        state = json.loads(stored.read(match.string).tobytes())
        outputs, inputs = state["shape"]
        nested = state.get("nested_blocksize")
        sizes = [outputs, inputs, state["blocksize"], 1 if nested is None else nested]
        offset = state.get("nested_offset", 0)
        if any(type(size) is not int or not 0 < size < LARGEST_SIZE for size in sizes):
            raise UserError(f"found the sizes {shown(sizes)}")
        if state["blocksize"] % 2:
            raise UserError(f"found the odd blocksize {state['blocksize']}")
        if type(offset) not in (int, float) or not abs(offset) <= np.finfo(np.float32).max:
            raise UserError(f"found the nested_offset {shown(offset)}")
        return Packed(name, kind, (outputs, inputs), state["blocksize"], nested, float(offset))
    except OSError:  # `stored` has only the headers of a Hub repository, not its weight files
        raise CheckpointError(
            f"{name} is stored in 4 bits, and {stored.tensors[match.string].file}, which has its "
            "quantisation parameters, is not on this machine: download the checkpoint and give "
            "its directory"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise CheckpointError(
            f"{match.string}: expected JSON with the shape and blocksize of {name} "
            f"({type(problem).__name__}: {shown(str(problem))})"
        ) from None


def _check_sizes(stored: Safetensors, weight: Packed) -> None:
    """Raises unless the codes and scales of a weight have the sizes and dtypes that it needs."""
    absmax = stored.tensors[f"{weight.name}.absmax"]
    found = stored.tensors[weight.name].nbytes, math.prod(absmax.shape)
    scales = -(-math.prod(weight.shape) // weight.block)
    expected = -(-math.prod(weight.shape) // 2), scales
    if found != expected:
        raise CheckpointError(
            f"{weight.name}: expected {expected[0]} bytes and {expected[1]} scales for shape "
            f"{weight.shape} in blocks of {weight.block}, found {found[0]} bytes and {found[1]} "
            "scales"
        )
    nested = {"nested_absmax": -(-scales // (weight.nested_block or 1)), "nested_quant_map": 256}
    for part, count in nested.items() if weight.nested_block is not None else ():
        info = stored.tensors.get(f"{weight.name}.{part}")
        if info is None or math.prod(info.shape) != count or info.dtype.kind in "biu":
            raise CheckpointError(
                f"{weight.name}.{part}: expected {count} numbers, found "
                + (f"{info.dtype}{list(info.shape)}" if info else "no such tensor")
            )
    plain = weight.nested_block is None
    if absmax.dtype.kind in "biu" if plain else absmax.dtype != np.uint8:
        raise CheckpointError(
            f"{absmax.name}: expected {'floating-point scales' if plain else 'uint8 codes'},"
            f" found {absmax.dtype}"
        )


def _check_map(stored: Safetensors, name: str, table: np.ndarray) -> None:
    if name not in stored.tensors or not np.array_equal(stored.read(name), table):
        raise CheckpointError(f"{name} is missing or differs from bitsandbytes' table of values")


def _codes(stored: Safetensors, weight: Packed, count: int) -> np.ndarray:  # uint8[count]
    """Unpacks the codes, high half of each byte first, and pads them with zeros to `count`."""
    pairs = stored.read(weight.name).reshape(-1).view(np.uint8)
    codes = np.zeros(count, np.uint8)
    codes[: 2 * len(pairs) : 2] = pairs >> 4
    low = codes[1 : 2 * len(pairs) : 2]
    low[:] = pairs[: len(low)] & 15
    return codes


def _is_double(stored: Safetensors, weight: Packed) -> bool:
    """Whether the scales are quantised in the form of `quant.block_scales`."""
    if weight.nested_block != block_scales.BLOCK:
        return False
    table = stored.read(f"{weight.name}.nested_quant_map").astype(np.float32)
    return np.array_equal(table, dynamic_map(signed=True))


def _nested(stored: Safetensors, weight: Packed, codes: np.ndarray) -> dict:
    """Returns the `Quantized` fields of double-quantised scales.

    The scales are dequantised to float32 if their table of values or their block size is not
    that of `quant.block_scales`.
    """
    peaks = stored.read(f"{weight.name}.nested_absmax").astype(np.float32)
    offset = np.float32(weight.offset)
    if _is_double(stored, weight):
        parts = dict(scales=codes, peaks=peaks, offset=offset)
        return parts | dict(kind=f"{weight.kind}-double")
    table = stored.read(f"{weight.name}.nested_quant_map").astype(np.float32)
    spread = np.repeat(peaks, weight.nested_block)[: codes.size].reshape(codes.T.shape).T
    return dict(scales=table[codes] * spread + offset)


def _some(whole: Quantized, weight: Packed, rows: slice) -> Quantized:
    """Returns some outputs of a weight, with plain scales.

    Double-quantised scales are dequantised, because scales of other outputs may share their peak.
    """
    inputs, outputs = whole.matrix
    if inputs % weight.block:
        raise CheckpointError(
            f"{weight.name} fuses several weights that share blocks, because {inputs} inputs are "
            f"not a multiple of {weight.block}: use the full-precision checkpoint"
        )
    scales = np.asarray(plain_scales(whole))[:, rows]
    count = len(range(*rows.indices(outputs)))
    kind = whole.kind.removesuffix("-double")
    return Quantized(whole.codes[..., rows], scales, kind=kind, matrix=(inputs, count))
