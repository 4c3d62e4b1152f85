"""Reads tensors from files onto devices, one layer of one leaf at a time.

"Piece" means the rows of a checkpoint's tensor that are one leaf or one layer of it.
"""

import contextlib
import ctypes
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from jaxtune.checkpoint.formats import bnb
from jaxtune.checkpoint.formats.tensors import CheckpointError, Tensors
from jaxtune.families.names import Piece
from jaxtune.quant import Quantized, is_quantized, quantize

BLOCK_BYTES = 2**24  # of a tensor that is converted or compared at a time
Fetch = Callable[[str], np.ndarray]  # a tensor by its name in the checkpoint


def load_leaf(
    stored: Tensors,
    packed: Mapping[str, bnb.Packed],  # tensors stored in 4 bits, by name
    pieces: Sequence[Piece],
    held: Any,  # ShapeDtypeStruct of the leaf, or a Quantized of those
    where: Any,  # Sharding of the leaf, or a Quantized of those
) -> Any:
    """Loads one leaf onto its devices, layer by layer: the host never holds more than one layer.

    Args:
      stored: the checkpoint's tensors.
      packed: its tensors that bitsandbytes packed; their codes are loaded as they are.
      pieces: the pieces of tensors that make up the leaf, one for each layer.
      held: the shape and dtype that the leaf will have, or those of its quantised arrays.
      where: the sharding of each array in `held`.

    Returns:
      The leaf: an array, or a `Quantized` if `held` is one.
    """
    if pieces[0].layer is None:
        return _put(stored, pieces[0], held, where)
    leaf = jax.tree.map(lambda s, at: jnp.zeros(s.shape, s.dtype, device=at), held, where)
    one = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape[1:], s.dtype), held)
    each = jax.tree.map(_of_layer, where)
    for piece in pieces:
        if is_quantized(held):
            layer = _put_quantized(stored, packed, piece, held.kind, each)
        else:
            layer = _put(stored, piece, one, each)
        leaf = _set_layer(leaf, layer, piece.layer)
    return leaf


def oriented(fetch: Fetch, piece: Piece) -> np.ndarray:
    """Returns a piece in our shape and axis order, as a view of the file where possible."""
    return piece.ours(fetch(piece.theirs))


def quantized(
    stored: Tensors, packed: Mapping[str, bnb.Packed], piece: Piece, kind: str
) -> Quantized:
    """Returns a piece as codes and scales in NumPy arrays.

    A packed piece is returned as it is stored, so `kind` is ignored; any other is quantised.

    Args:
      stored: the checkpoint's tensors.
      packed: its tensors that are stored in 4 bits, by name.
      piece: the piece to return.
      kind: the kind to quantise to, such as "nf4".

    Returns:
      A weight [in, out] of one layer.
    """
    if piece.theirs in packed:
        return bnb.unpack(stored, packed[piece.theirs], piece.rows)
    try:
        return quantize(oriented(stored.read, piece), kind)
    except ValueError as problem:
        raise CheckpointError(f"{piece.theirs}: {problem}") from None


def trim() -> None:
    """Returns freed memory to the system; glibc keeps the arenas of threads for later use."""
    with contextlib.suppress(OSError, AttributeError):  # not glibc: it has no malloc_trim
        ctypes.CDLL(None).malloc_trim(0)


def _put_quantized(
    stored: Tensors, packed: Mapping[str, bnb.Packed], piece: Piece, kind: str, where: Any
) -> Quantized:
    made = quantized(stored, packed, piece, kind)

    def sent(part: np.ndarray, at: Sharding) -> jax.Array:
        return _sent(part.shape, at, lambda index: [(0, 0, part[index])], part.dtype)

    array = jax.tree.map(sent, made, where)
    stored.release(piece.theirs)
    return array


def _put(stored: Tensors, piece: Piece, held: jax.ShapeDtypeStruct, where: Sharding) -> jax.Array:
    """Reads one piece from its file and puts this process's shards of it on their devices."""
    parts = partial(_converted, stored, piece, held.dtype)
    array = _sent(held.shape, where, parts, held.dtype)
    stored.release(piece.theirs)
    return array


Blocks = Iterable[tuple[int, int, np.ndarray]]  # (axis, start on that axis, values)


def _sent(
    shape: tuple[int, ...],
    where: Sharding,
    parts: Callable[[tuple[slice, ...]], Blocks],
    dtype: np.dtype,
) -> jax.Array:
    """Builds a sharded array; `parts(index)` yields the blocks of the shard at `index`.

    Each shard is read once, however many of this process's devices hold it.
    """
    whole = where.shard_shape(shape)
    holders: dict[str, list[Any]] = {}
    indices = where.addressable_devices_indices_map(shape)
    for device, index in indices.items():
        holders.setdefault(str(index), []).append(device)
    shards = [
        shard
        for devices in holders.values()
        for shard in _filled(parts(indices[devices[0]]), whole, dtype, devices)
    ]
    array = jax.make_array_from_single_device_arrays(shape, where, shards)
    return jax.block_until_ready(array)


def _filled(
    blocks: Blocks, shape: tuple[int, ...], dtype: np.dtype, devices: Sequence[Any]
) -> list[jax.Array]:
    """Joins blocks into one array of the given shape on each of the devices."""
    arrays: list[jax.Array] = []
    for axis, start, block in blocks:
        # Without a copy, an array on the CPU backend would alias the memory-mapped file.
        copies = [jax.device_put(block, device, may_alias=False) for device in devices]
        if block.shape == shape:
            return copies
        arrays = arrays or [jnp.zeros(shape, dtype, device=device) for device in devices]
        # Waits for the transfers, so that the host holds only one block at a time.
        arrays = jax.block_until_ready(
            [
                _set_block(array, copy, start, axis)
                for array, copy in zip(arrays, copies, strict=True)
            ]
        )
    return arrays


def _converted(stored: Tensors, piece: Piece, dtype: np.dtype, index: tuple[slice, ...]) -> Blocks:
    """Yields part of a piece, converted to `dtype` block by block.

    Pages of the file are released as soon as they are converted.
    """
    view = oriented(stored.read, piece)[index]
    if view.dtype == dtype:
        yield 0, 0, view
        return
    source = view.T if piece.transposed else view  # rows in the order of the file
    for rows in runs(source):
        block = cast(source[rows], dtype, piece.theirs)
        yield (1, rows.start, block.T) if piece.transposed else (0, rows.start, block)
        stored.release(piece.theirs)


def runs(array: np.ndarray) -> Iterator[slice]:
    """Yields slices of rows that take about `BLOCK_BYTES` each."""
    rows = max(1, BLOCK_BYTES * len(array) // max(1, array.nbytes))
    return (slice(start, start + rows) for start in range(0, len(array), rows))


def cast(array: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """Converts a floating-point tensor to `dtype`, and returns any other tensor unchanged.

    Raises CheckpointError, naming the tensor, if finite values overflow float16.
    """
    if array.dtype == dtype or not floating(array.dtype):
        return array
    with np.errstate(over="ignore"):
        converted = array.astype(dtype)
    if dtype == np.float16 and np.isinf(converted).any() and np.isfinite(array).all():
        largest = np.abs(array.astype(np.float32)).max()
        raise CheckpointError(
            f"{name} has values up to {largest:.4g}, beyond float16's range: "
            "use bfloat16 or float32"
        )
    return converted


@partial(jax.jit, donate_argnums=0)
def _set_layer(leaf: Any, layer: Any, number: int) -> Any:
    update = partial(jax.lax.dynamic_update_index_in_dim, index=number, axis=0)
    return jax.tree.map(update, leaf, layer)


@partial(jax.jit, donate_argnums=0, static_argnums=3)
def _set_block(array: jax.Array, block: jax.Array, start: int, axis: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(array, block, start, axis)


def _of_layer(where: Sharding) -> Sharding:
    """Returns the sharding of one layer of a stacked leaf, given that of the leaf."""
    if isinstance(where, NamedSharding):
        return NamedSharding(where.mesh, PartitionSpec(*where.spec[1:]))
    return where


def floating(dtype: np.dtype) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)
