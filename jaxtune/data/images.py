"""Finds and decodes the pictures of rows, as PaliGemma was trained to see them.

TensorFlow decodes and resizes, as in big_vision's `decode|resize(size, antialias=True)|
value_range(-1, 1)`, with bit-identical results; it is imported with the first picture and stays on
the CPU. As in big_vision, an alpha channel is dropped, the first frame of a GIF is taken, and
16 bits become 8. Unlike there, the EXIF orientation of a JPEG is applied.
"""

import contextlib
import functools
import os
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from jaxtune.data.errors import RowError, known
from jaxtune.display import escapes
from jaxtune.display.errors import UserError
from jaxtune.files import special_kind
from jaxtune.files.fetched import content
from jaxtune.files.store import StoreError, bucket, is_remote, joined

Reference = str | bytes  # the absolute path or URL of a picture, or an encoded picture itself
Steps = Sequence[tuple[str, float]]  # (name of an augmentation, its strength)
Chance = np.random.Generator

HEAD = 64  # bytes that suffice to recognise a format
FORMATS: dict[str, Callable[[bytes], bool]] = {
    "JPEG": lambda head: head.startswith(b"\xff\xd8\xff"),
    "PNG": lambda head: head.startswith(b"\x89PNG\r\n\x1a\n"),
    "GIF": lambda head: head.startswith((b"GIF87a", b"GIF89a")),
    "BMP": lambda head: head.startswith(b"BM"),
    "WebP": lambda head: head.startswith(b"RIFF") and head[8:12] == b"WEBP",
}
ANIMATED = 2  # bit for animation in the flags of an extended WebP
ORIENTATION = 0x0112  # the EXIF tag
# EXIF orientation -> function that turns uint8[H, W, C] upright.
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels[::-1].swapaxes(0, 1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels[:, ::-1].swapaxes(0, 1),
}
BEGINNING = threading.Lock()


@dataclass(frozen=True)
class Pictures:
    """Size and placeholder tokens of the pictures that a model takes."""

    size: int  # side of the square they are resized to, in pixels
    tokens: int  # placeholder tokens for each picture
    token: int  # id of the placeholder, which no text is encoded to


def references(value: Any, name: str, folder: str | Path, place: str) -> tuple[Reference, ...]:
    """Returns the pictures of a column that holds a path, bytes, or a list of these.

    A picture may also be a dictionary with "path" and "bytes", as in Hugging Face datasets.

    Args:
      value: Value of the column.
      name: Name of the column, for error messages.
      folder: Folder that relative paths start from.
      place: Place of the row, for error messages.

    Returns:
      At least one picture, each as an absolute path or as bytes; files are not opened.

    Raises:
      RowError: If the column has no picture or a value of another kind.
    """
    listed = value if isinstance(value, list | tuple) else [value]
    if not listed:
        raise RowError(place, f"column {name!r} is an empty list; expected a picture")
    return tuple(_reference(each, name, folder, place) for each in listed)


def check(reference: Reference, place: str) -> None:
    """Raises RowError unless the picture exists and begins like one of the known formats."""
    _format(_bytes(reference, place, HEAD), reference, place)


def read(
    reference: Reference | Path,
    size: int,
    place: str = "",
    augment: Steps | None = None,
    key: Sequence[int] | None = None,
) -> np.ndarray:  # float32[size, size, 3], from -1 to 1
    """Decodes, augments and resizes a picture.

    Args:
      reference: Path or bytes of the picture.
      size: Side of the square that it is resized to, in pixels.
      place: Place of its row, for error messages.
      augment: Random changes: ("crop", smallest share of the area that is kept), ("flip",
        probability of mirroring), ("colour", largest relative change of brightness, contrast and
        saturation).
      key: Non-negative integers that alone determine the random changes.

    Returns:
      The pixels as float32[size, size, 3], from -1 to 1.

    Raises:
      RowError: If the picture cannot be decoded.
    """
    reference = reference if isinstance(reference, bytes) else os.fspath(reference)
    data = _bytes(reference, place)
    pixels = _upright(_decoded(data, reference, place), data)
    steps = [(*_augmentation(name), amount, _chance(name, key)) for name, amount in augment or ()]
    for first, change, amount, chance in steps:
        pixels = change(pixels, amount, chance) if first else pixels
    pixels = _resized(pixels, size).astype(np.float32)
    for first, change, amount, chance in steps:
        pixels = pixels if first else change(pixels, amount, chance)
    return pixels / np.float32(255) * np.float32(2) - np.float32(1)


def size(reference: str) -> int:
    """Returns the bytes of an encoded picture."""
    return len(content(reference)) if is_remote(reference) else os.stat(reference).st_size


def shown(reference: Reference) -> str:
    """Returns how messages name a picture: by its path, or by its size in bytes."""
    if isinstance(reference, bytes):
        return f"the picture in the row ({len(reference):,} bytes)"
    return f"picture {reference}"


# Locating and reading pictures


def _reference(value: Any, name: str, folder: str | Path, place: str) -> Reference:
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes) and value:
        return value
    if isinstance(value, str) and value.strip():
        return _located(os.fspath(folder), value, name, place)
    found = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:59]}…"
    raise RowError(
        place,
        f"column {name!r} is {found}; expected a picture's path, its bytes or a list of these",
    )


def _located(folder: str, value: str, name: str, place: str) -> str:
    """Returns the path or URL of a picture that a row names relative to a folder.

    Rows may come from anybody, so they reach no store but that of the folder, and those in a store
    do not reach the disk.
    """
    remote = is_remote(folder)
    if not remote and not is_remote(value):
        return os.path.abspath(os.path.join(folder, os.path.expanduser(value)))
    if is_remote(value):
        found, local = joined(bucket(value), value.removeprefix(bucket(value))), False
    else:
        found, local = joined(folder, value), os.path.isabs(os.path.expanduser(value))
    if not remote or local or bucket(found) != bucket(folder):
        raise RowError(
            place,
            f"column {name!r} names {escapes.shown(value)}; expected a path relative to {folder}"
            + (f", or a URL in {bucket(folder)}" if remote else ""),
        )
    return found


def _bytes(reference: Reference, place: str, count: int = -1) -> bytes:
    """Returns the encoded bytes of a picture, or the first `count` of them."""
    if isinstance(reference, bytes):
        return reference[:count] if count >= 0 else reference
    if is_remote(reference):
        return _remote_bytes(reference, place, count)
    if kind := special_kind(reference):
        raise _error(reference, place, f"is {kind}, not a file")
    try:
        with open(reference, "rb") as file:
            found = file.read(count)
    except FileNotFoundError:
        raise _error(reference, place, "no such file") from None
    except (OSError, ValueError) as error:  # ValueError: the path has a null byte
        reason = getattr(error, "strerror", None) or error
        raise _error(reference, place, f"cannot be read: {reason}") from None
    if not found:
        raise _error(reference, place, "the file is empty")
    return found


def _remote_bytes(url: str, place: str, count: int) -> bytes:
    try:
        found = content(url, count)
    except FileNotFoundError:
        raise _error(url, place, "no such object") from None
    except StoreError as error:
        raise _error(url, place, str(error)) from None
    if not found:
        raise _error(url, place, "the object is empty")
    return found


def _format(head: bytes, reference: Reference, place: str) -> str:
    """Returns the format of a picture, from its first bytes."""
    for name, begins in FORMATS.items():
        if begins(head):
            return name
    problem = f"unknown format: it begins with {head[:8]!r}; expected {', '.join(FORMATS)}"
    raise _error(reference, place, problem)


def _error(reference: Reference, place: str, problem: str) -> RowError:
    return RowError(place or "image", f"{shown(reference)}: {problem}")


# Decoding and resizing


@functools.cache
def _tensorflow() -> ModuleType:
    """Imports TensorFlow without log messages, and on the CPU: the accelerator is left to JAX."""
    with BEGINNING:
        try:
            with _quiet():
                import tensorflow
        except ModuleNotFoundError as error:
            raise UserError(
                f"pictures are decoded by TensorFlow, and {error.name} is not installed: run "
                "pip install 'jaxtune[pictures]', or pip install tensorflow-cpu"
            ) from None
        tensorflow.get_logger().setLevel("ERROR")
        # RuntimeError: the program has already used TensorFlow, and its settings stay as they are.
        with contextlib.suppress(RuntimeError):
            for kind in ("GPU", "TPU"):
                tensorflow.config.set_visible_devices([], kind)
            # Several pictures are decoded at once, each in one thread.
            tensorflow.config.threading.set_intra_op_parallelism_threads(1)
            tensorflow.config.threading.set_inter_op_parallelism_threads(1)
        return tensorflow


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Sets the environment variables that keep TensorFlow quiet while it is imported."""
    told = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _decoded(data: bytes, reference: Reference, place: str) -> np.ndarray:
    """Decodes a picture into uint8[H, W, 3], with the orientation of the file."""
    kind = _format(data[:HEAD], reference, place)
    unread = UNREAD[kind](data) if kind in UNREAD else ""
    if unread:
        raise _error(reference, place, f"{unread}, which is not supported; save it as PNG")
    tensorflow = _tensorflow()
    channels = 0 if kind == "WebP" else 3  # a WebP decodes only to its own channels
    try:
        with tensorflow.device("CPU:0"):
            found = tensorflow.io.decode_image(data, channels, expand_animations=False)
        return found.numpy()[..., :3]
    except tensorflow.errors.OpError as error:
        reason = error.message.rpartition("}} ")[2].partition(" [Op:")[0]
        raise _error(reference, place, f"is damaged or truncated: {reason}") from None


def _resized(pixels: np.ndarray, size: int) -> np.ndarray:  # uint8[H, W, 3]
    """Resizes to uint8[size, size, 3]; fractions are truncated, as in big_vision."""
    tensorflow = _tensorflow()
    with tensorflow.device("CPU:0"):
        found = tensorflow.image.resize(pixels, (size, size), method="bilinear", antialias=True)
        return np.clip(found.numpy(), 0, 255).astype(np.uint8)


def _unread_bmp(data: bytes) -> str:
    """Returns why TensorFlow would misread a BMP, or "" if it would not."""
    bits, packed = int.from_bytes(data[28:30], "little"), int.from_bytes(data[30:34], "little")
    if bits not in (8, 24, 32) or packed not in (0, 3):
        return f"is a BMP with {bits} bits per pixel and compression {packed}"
    if bits == 8:
        start = 14 + int.from_bytes(data[14:18], "little")
        palette = np.frombuffer(data[start : int.from_bytes(data[10:14], "little")], np.uint8)
        palette = palette[: len(palette) // 4 * 4].reshape(-1, 4)[:, :3]
        if (palette != np.arange(len(palette))[:, None]).any():
            return "is a BMP with a palette"
    return ""


def _unread_webp(data: bytes) -> str:
    animated = data[12:16] == b"VP8X" and len(data) > 20 and data[20] & ANIMATED
    return "is an animated WebP" if animated else ""


# Format -> function that returns why a file would be decoded wrongly, or "" if it would not.
UNREAD: dict[str, Callable[[bytes], str]] = {"BMP": _unread_bmp, "WebP": _unread_webp}


# EXIF


def _upright(pixels: np.ndarray, data: bytes) -> np.ndarray:
    turn = TURNS.get(_orientation(data))
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))


def _orientation(data: bytes) -> int:
    """Returns the EXIF orientation of a JPEG, or 1 (upright) for any other file."""
    at = 2
    while data[at : at + 1] == b"\xff" and data[:2] == b"\xff\xd8":
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA or length < 2:  # image data follows
            break
        if marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            return _tagged(data[at + 10 : at + 2 + length])
        at += 2 + length
    return 1


def _tagged(block: bytes) -> int:
    """Returns the orientation from the first directory of an EXIF (TIFF) block, or 1."""
    order = {b"II": "little", b"MM": "big"}.get(block[:2])
    if order is None:
        return 1

    def number(start: int, size: int) -> int:
        return int.from_bytes(block[start : start + size], order)

    first = number(4, 4)
    entries = (first + 2 + 12 * each for each in range(number(first, 2)))
    return next((number(at + 8, 2) for at in entries if number(at, 2) == ORIENTATION), 1)


# Augmentation


def _cropped(pixels: np.ndarray, least: float, chance: Chance) -> np.ndarray:  # uint8[H, W, 3]
    """Crops a random rectangle that has at least `least` of the area, in random proportions."""
    area, tall = chance.uniform(least, 1), chance.uniform()
    height, width = pixels.shape[:2]
    kept = (int(np.ceil(height * area**tall)), int(np.ceil(width * area ** (1 - tall))))
    top, left = chance.integers(height - kept[0] + 1), chance.integers(width - kept[1] + 1)
    return pixels[top : top + kept[0], left : left + kept[1]]


def _flipped(pixels: np.ndarray, often: float, chance: Chance) -> np.ndarray:  # float32[S, S, 3]
    return pixels[:, ::-1] if chance.uniform() < often else pixels


def _coloured(pixels: np.ndarray, stray: float, chance: Chance) -> np.ndarray:  # float32[S, S, 3]
    """Scales brightness, contrast and saturation, each by a factor in [1 - stray, 1 + stray]."""
    bright, contrast, colour = chance.uniform(1 - stray, 1 + stray, 3).astype(np.float32)
    pixels = pixels * bright
    pixels = (pixels - pixels.mean()) * contrast + pixels.mean()
    grey = pixels.mean(-1, keepdims=True)
    return np.clip((pixels - grey) * colour + grey, 0, 255)


# Name -> (whether it is applied before resizing, function).
AUGMENTATIONS: dict[str, tuple[bool, Callable[[np.ndarray, float, Chance], np.ndarray]]] = {
    "crop": (True, _cropped),
    "flip": (False, _flipped),
    "colour": (False, _coloured),
}


def _augmentation(name: str) -> tuple[bool, Callable[[np.ndarray, float, Chance], np.ndarray]]:
    return AUGMENTATIONS[known("augmentation", name, AUGMENTATIONS)]


def _chance(name: str, key: Sequence[int] | None) -> Chance:
    """Returns a generator seeded by the augmentation and key, so that none affects another."""
    return np.random.default_rng([zlib.crc32(name.encode()), *(key or ())])
