"""Archives made for tests: by our writer, and member by member with any content."""

import io
import struct
import zipfile

import ml_dtypes
import numpy as np

from jaxtune.checkpoint.formats import npz
from tests.checkpoint.formats.arrays import random_array

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = (*npz.PLAIN, BFLOAT16)
SAVERS = [np.savez, np.savez_compressed]
LAYERS = "params/llm/layers/attn/q_einsum/w"


def all_dtypes():
    return {f"params/{dtype}": random_array((3, 5), dtype) for dtype in DTYPES}


def write(path, arrays, **options):
    plan = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    return npz.write(path, plan, lambda name: [arrays[name]], **options)


def raw_zip(path, members, method=zipfile.ZIP_STORED):
    """An archive with exactly these members: (name, bytes)."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def npy(array=None, header=None, data=b""):
    """A member's bytes: an array's, or a header that says anything."""
    out = io.BytesIO()
    if header is None:
        np.save(out, array)
        return out.getvalue()
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data
