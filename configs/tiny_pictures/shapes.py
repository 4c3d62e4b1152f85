"""Pictures of coloured shapes, drawn with NumPy alone, and written as PNG.

Shapes are told by the distance to their edge, in units of their size: below 0 lies the inside.
Axes: S side of a picture in pixels.
"""

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Field = np.ndarray  # float64[S, S], a number for every pixel
Colour = tuple[int, int, int]

PERIOD = 0.2  # of a pattern, as a share of the side


@dataclass(frozen=True)
class Thing:
    """A shape where it stands; lengths are shares of the picture's side."""

    shape: str
    colour: str
    radius: float
    x: float  # of its middle, from the left
    y: float  # from above


@dataclass(frozen=True)
class Ground:
    """What lies behind."""

    pattern: str
    light: Colour
    dark: Colour


def _triangle(x: Field, y: Field) -> Field:
    return np.maximum(y - 0.6, np.abs(x) * 0.866 - y * 0.5 - 0.45)


def _star(x: Field, y: Field) -> Field:
    """Five points: inside all but one of the sides of the pentagon in its middle, or all."""
    angles = np.arange(5) * 2 * np.pi / 5 - np.pi / 2
    sides = [np.cos(angle) * x + np.sin(angle) * y - 0.36 for angle in angles]
    return np.sort(sides, axis=0)[-2]


def _cross(x: Field, y: Field) -> Field:
    x, y = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(x - 0.9, y - 0.28), np.maximum(y - 0.9, x - 0.28))


SHAPES: dict[str, Callable[[Field, Field], Field]] = {
    "circle": lambda x, y: np.hypot(x, y) - 0.95,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) - 0.8,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.72) - 0.23,
}
COLOURS: dict[str, Colour] = dict(
    red=(214, 30, 36),
    orange=(245, 130, 20),
    yellow=(250, 220, 30),
    green=(30, 145, 60),
    blue=(30, 75, 205),
    purple=(125, 40, 165),
    black=(20, 20, 24),
    white=(252, 252, 252),
)
PATTERNS: dict[str, Callable[[Field, Field], Field]] = {  # where a ground's dark colour is
    "plain": lambda x, y: np.zeros(np.broadcast(x, y).shape),
    "striped": lambda x, y: np.broadcast_to(y % PERIOD < PERIOD / 2, np.broadcast(x, y).shape),
    "checked": lambda x, y: (x % PERIOD < PERIOD / 2) ^ (y % PERIOD < PERIOD / 2),
    "dotted": lambda x, y: (
        np.hypot(x % PERIOD - PERIOD / 2, y % PERIOD - PERIOD / 2) < PERIOD * 0.27
    ),
}


def drawn(things: list[Thing], ground: Ground, side: int) -> np.ndarray:  # uint8[S, S, 3]
    """A picture, its edges smooth."""
    steps = (np.arange(side) + 0.5) / side
    x, y = steps[None, :], steps[:, None]
    dark = PATTERNS[ground.pattern](x, y)[..., None]
    pixels = np.where(dark, np.float32(ground.dark), np.float32(ground.light))
    for thing in things:
        across, down = (_span(middle, thing.radius, side) for middle in (thing.x, thing.y))
        part = [(x[:, across] - thing.x) / thing.radius, (y[down] - thing.y) / thing.radius]
        share = np.clip(0.5 - SHAPES[thing.shape](*part) * thing.radius * side, 0, 1)[..., None]
        pixels[down, across] += share * (np.float32(COLOURS[thing.colour]) - pixels[down, across])
    return pixels.round().astype(np.uint8)


def _span(middle: float, radius: float, side: int) -> slice:
    """The pixels that something reaches."""
    return slice(max(0, int((middle - radius) * side) - 1), int((middle + radius) * side) + 2)


def png(pixels: np.ndarray) -> bytes:  # uint8[H, W, 3]
    """A picture as a PNG file."""
    height, width, _ = pixels.shape
    lines = np.pad(pixels.reshape(height, -1), ((0, 0), (1, 0)))  # the 0 before each: no filter
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits each of red green blue
    body = zlib.compress(lines.tobytes(), 9)
    chunks = (_chunk(b"IHDR", header), _chunk(b"IDAT", body), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
