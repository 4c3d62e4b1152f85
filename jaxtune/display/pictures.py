"""Self-contained images for HTML pages: pictures, boxes over pictures, and attention masks."""

import base64
import html
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
SUB = 1  # the PNG filter that stores the difference from the pixel on the left
SIDE = 224  # displayed side of a picture in pixels, to which its data is reduced approximately
SQUARE = 240  # side of an attention mask in pixels
LEAST = 28  # least pixels of a part of the mask, less where there are many parts
MARGIN = 116  # pixels on the left of the mask, for the names of its parts
RULER = 6  # width in pixels of the coloured strips along the mask that mark its parts
LETTERS = 11  # font size in pixels
SHADE = 0.78  # factor that darkens a part's colour inside the mask
NOT_XML = dict.fromkeys([*range(9), 11, 12, *range(14, 32), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF])


@dataclass(frozen=True)
class Part:
    """A stretch of consecutive tokens of one kind."""

    name: str
    colour: str  # as #rrggbb
    tokens: int


@dataclass(frozen=True)
class Frame:
    """A labelled box over a picture.

    `box` is (y_min, x_min, y_max, x_max), as fractions of the picture's height and width.
    """

    label: str
    box: tuple[float, float, float, float]
    colour: str
    dashed: bool = False


def png(pixels: np.ndarray) -> bytes:  # uint8[H, W, 3]
    """Returns pixels as the bytes of a PNG file."""
    height, width, _ = pixels.shape
    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)  # 8-bit RGB
    before = np.pad(pixels, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    lines = (pixels - before).reshape(height, -1)  # uint8 wraps modulo 256, as PNG filters do
    lines = np.pad(lines, ((0, 0), (1, 0)), constant_values=SUB)
    body = zlib.compress(lines.tobytes())
    chunks = ((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))
    return SIGNATURE + b"".join(_chunk(*each) for each in chunks)


def source(pixels: np.ndarray) -> str:  # uint8[H, W, 3]
    """Returns pixels as a PNG data URL, for the source of an HTML or SVG image."""
    return f"data:image/png;base64,{base64.b64encode(png(pixels)).decode()}"


def bytes_of(image: np.ndarray) -> np.ndarray:  # float32[S, S, 3], from -1 to 1
    """Converts a model's input picture to uint8[s, s, 3].

    A large picture is reduced to a side of about `SIDE`, by the mean over blocks of pixels.
    """
    by = max(1, round(len(image) / SIDE))
    over = -len(image) % by
    image = np.pad(image, ((0, over), (0, over), (0, 0)), mode="edge")
    side = len(image) // by
    image = image.reshape(side, by, side, by, 3).mean((1, 3))
    return np.rint((np.clip(image, -1, 1) + 1) * 127.5).astype(np.uint8)


def picture(image: np.ndarray, name: str) -> str:  # float32[S, S, 3], from -1 to 1
    """Returns an HTML `img` element of a picture, with its name as alternative text."""
    return f'<img src="{source(bytes_of(image))}" width="{SIDE}" alt="{_escaped(name)}">'


def framed(image: np.ndarray, frames: Sequence[Frame], name: str) -> str:
    """Returns an SVG of a picture, float32[S, S, 3] from -1 to 1, with boxes drawn over it."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIDE} {SIDE}" width="{SIDE}"'
        f' height="{SIDE}" font-family="system-ui, sans-serif" font-size="{LETTERS}" role="img"'
        f' aria-label="{_escaped(name)}">\n<image href="{source(bytes_of(image))}" width="{SIDE}"'
        f' height="{SIDE}"/>\n{"".join(map(_framed, frames))}</svg>'
    )


def attention(seen: np.ndarray, parts: Sequence[Part], name: str = "attention mask") -> str:
    """Returns an SVG of an attention mask, bool[T, T]: tokens in rows attend to those in columns.

    Each column has the colour of the part that its token belongs to. Parts of few tokens are drawn
    larger than in proportion, so that the mask inside them is legible.
    """
    edges = _edges([part.tokens for part in parts])
    chosen = _chosen([part.tokens for part in parts], edges)
    owner = np.repeat(np.arange(len(parts)), np.diff(edges))
    colours = np.array([list(bytes.fromhex(part.colour[1:])) for part in parts])
    shades = (colours * SHADE).astype(np.uint8)[owner]  # uint8[SQUARE, 3], one per column
    pixels = np.where(seen[np.ix_(chosen, chosen)][..., None], shades, np.uint8(255))
    marks = "".join(
        _ruled(part, int(begin), int(end))
        for part, begin, end in zip(parts, edges, edges[1:], strict=False)
    )
    width, height = MARGIN + SQUARE + 1, RULER + SQUARE + 1
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
        f' height="{height}" font-family="system-ui, sans-serif" font-size="{LETTERS}" role="img"'
        f' aria-label="{_escaped(name)}">\n<image href="{source(pixels)}" x="{MARGIN}" y="{RULER}"'
        f' width="{SQUARE}" height="{SQUARE}"/>\n{marks}<rect x="{MARGIN}" y="{RULER}"'
        f' width="{SQUARE}" height="{SQUARE}" fill="none" stroke="#9e9e9e"/>\n</svg>'
    )


def _chunk(name: bytes, data: bytes) -> bytes:
    check = zlib.crc32(name + data)
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)


def _edges(counts: Sequence[int]) -> np.ndarray:
    """Returns the edges of the parts in pixels, int64[parts + 1], from 0 to `SQUARE`.

    Every part gets the same least width, and shares the rest in proportion to its tokens.
    """
    least = min(LEAST, SQUARE // (2 * len(counts)))
    widths = least + np.array(counts) / sum(counts) * (SQUARE - least * len(counts))
    return np.rint(np.cumsum([0, *widths])).astype(int)


def _chosen(counts: Sequence[int], edges: np.ndarray) -> np.ndarray:
    """Returns the index of the token that each pixel shows, int64[SQUARE]."""
    starts = np.cumsum([0, *counts])
    widths = np.diff(edges)
    within = [
        np.arange(width) * count // width for width, count in zip(widths, counts, strict=True)
    ]
    return np.concatenate([start + each for start, each in zip(starts, within, strict=False)])


def _ruled(part: Part, begin: int, end: int) -> str:
    """Returns SVG of a part's strips, left of the mask and above it, and its name if it fits."""
    strips = (
        f'<rect x="{MARGIN - RULER}" y="{RULER + begin}" width="{RULER}" height="{end - begin}"'
        f' fill="{part.colour}" stroke="#9e9e9e" stroke-width=".5"/>\n'
        f'<rect x="{MARGIN + begin}" y="0" width="{end - begin}" height="{RULER}"'
        f' fill="{part.colour}" stroke="#9e9e9e" stroke-width=".5"/>\n'
    )
    if end - begin < LETTERS:
        return strips
    middle = RULER + (begin + end) / 2 + LETTERS / 3
    return strips + (
        f'<text x="{MARGIN - RULER - 5}" y="{middle:.1f}" text-anchor="end">'
        f"{_escaped(part.name)} {part.tokens:,}</text>\n"
    )


def _framed(frame: Frame) -> str:
    top, left, bottom, right = (share * SIDE for share in frame.box)
    dashes = ' stroke-dasharray="5 4"' if frame.dashed else ""
    box = (
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{max(right - left, 0):.1f}"'
        f' height="{max(bottom - top, 0):.1f}" fill="none" stroke="{frame.colour}"'
        f' stroke-width="2"{dashes}/>\n'
    )
    # The label of a dashed box is at its bottom and that of a solid one at its top, so that the
    # labels of two boxes in one place stay apart. A white outline keeps the letters legible.
    base = bottom - 4 if frame.dashed else top + LETTERS + 1
    return box + (
        f'<text x="{left + 3:.1f}" y="{min(max(base, LETTERS), SIDE - 3):.1f}"'
        f' fill="{frame.colour}" stroke="#fff" stroke-width="3" paint-order="stroke"'
        f' font-weight="600">{_escaped(frame.label)}</text>\n'
    )


def _escaped(text: str) -> str:
    """Escapes a text for HTML and SVG, and removes characters that XML does not allow."""
    return html.escape(text.translate(NOT_XML))
