"""Safetensors files made for tests: by our writer, by the safetensors package and by hand."""

import json

import ml_dtypes
import numpy as np
import torch

from jaxtune.checkpoint.formats import safetensors as ours
from jaxtune.checkpoint.formats.safetensors import write_sharded
from tests.checkpoint.formats.arrays import random_array

TORCH_ONLY = {
    np.dtype(ml_dtypes.bfloat16): torch.bfloat16,
    np.dtype(ml_dtypes.float8_e4m3fn): torch.float8_e4m3fn,
    np.dtype(ml_dtypes.float8_e5m2): torch.float8_e5m2,
}


def all_dtypes():
    return {
        name: random_array((3, 5), dtype, seed)
        for seed, (name, dtype) in enumerate(ours.DTYPES.items())
    }


def to_torch(array):
    if array.dtype not in TORCH_ONLY:
        return torch.from_numpy(array.copy())
    return torch.from_numpy(array.view(np.uint8).copy()).view(TORCH_ONLY[array.dtype])


def to_numpy(tensor):
    if tensor.dtype not in TORCH_ONLY.values():
        return tensor.numpy()
    dtype = next(ours for ours, theirs in TORCH_ONLY.items() if theirs == tensor.dtype)
    return tensor.reshape(-1).view(torch.uint8).numpy().view(dtype).reshape(tuple(tensor.shape))


def write(directory, arrays, **options):
    shapes = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    return write_sharded(directory, shapes, arrays.__getitem__, **options)


def raw_file(path, header, data=b"", length=None):
    """A file with exactly these parts, sound or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(start, stop, shape=None, dtype="U8"):
    return {"dtype": dtype, "shape": shape or [stop - start], "data_offsets": [start, stop]}


def sharded(directory, count=3):
    arrays = {f"layer.{number}": random_array((10,), np.float32, number) for number in range(count)}
    write(directory, arrays, max_shard_bytes=40)
    return arrays
