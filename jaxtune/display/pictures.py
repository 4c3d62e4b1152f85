"""What pages draw, with nothing beside them: pictures, boxes over these, and who sees whom."""

import base64
import html
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
SUB = 1  # the PNG filter that stores what differs from the pixel before
SIDE = 224  # pixels of a picture on a page, about
SQUARE = 240  # those of an attention picture
LEAST = 28  # pixels of a part of it that has few tokens
MARGIN = 116  # for the names of its parts
RULER = 6  # the strips that tell its parts apart
LETTERS = 11  # their height
SHADE = 0.78  # of a colour, where something is seen
NOT_XML = dict.fromkeys([*range(9), 11, 12, *range(14, 32), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF])


@dataclass(frozen=True)
class Part:
    """Consecutive tokens of one kind."""

    name: str
    colour: str  # as #rrggbb
    tokens: int


@dataclass(frozen=True)
class Frame:
    """A box over a picture: y_min, x_min, y_max, x_max, in shares of its sides."""

    label: str
    box: tuple[float, float, float, float]
    colour: str
    dashed: bool = False


def png(pixels: np.ndarray) -> bytes:  # uint8[H, W, 3]
    """Pixels as a PNG file."""
    height, width, _ = pixels.shape
    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)  # 8 bits of red, green and blue
    before = np.pad(pixels, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    lines = (pixels - before).reshape(height, -1)  # modulo 256, as unsigned bytes are
    lines = np.pad(lines, ((0, 0), (1, 0)), constant_values=SUB)
    body = zlib.compress(lines.tobytes())
    chunks = ((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))
    return SIGNATURE + b"".join(_chunk(*each) for each in chunks)


def source(pixels: np.ndarray) -> str:  # uint8[H, W, 3]
    """Pixels as the source of a page's picture."""
    return f"data:image/png;base64,{base64.b64encode(png(pixels)).decode()}"


def bytes_of(image: np.ndarray) -> np.ndarray:  # float32[S, S, 3], from -1 to 1
    """What a model sees as uint8[s, s, 3]; a large picture is averaged down to about `SIDE`."""
    by = max(1, round(len(image) / SIDE))
    over = -len(image) % by
    image = np.pad(image, ((0, over), (0, over), (0, 0)), mode="edge")
    side = len(image) // by
    image = image.reshape(side, by, side, by, 3).mean((1, 3))
    return np.rint((np.clip(image, -1, 1) + 1) * 127.5).astype(np.uint8)


def picture(image: np.ndarray, name: str) -> str:  # float32[S, S, 3], from -1 to 1
    """A picture on a page."""
    return f'<img src="{source(bytes_of(image))}" width="{SIDE}" alt="{_escaped(name)}">'


def framed(image: np.ndarray, frames: Sequence[Frame], name: str) -> str:
    """A picture, float32[S, S, 3] from -1 to 1, with boxes drawn over it, as SVG."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIDE} {SIDE}" width="{SIDE}"'
        f' height="{SIDE}" font-family="system-ui, sans-serif" font-size="{LETTERS}" role="img"'
        f' aria-label="{_escaped(name)}">\n<image href="{source(bytes_of(image))}" width="{SIDE}"'
        f' height="{SIDE}"/>\n{"".join(map(_framed, frames))}</svg>'
    )


def attention(seen: np.ndarray, parts: Sequence[Part], name: str = "who sees whom") -> str:
    """Which tokens (rows) see which (columns), bool[T, T], coloured by what is seen, as SVG.

    Parts of few tokens are drawn larger than they are, so that one sees into them.
    """
    edges = _edges([part.tokens for part in parts])
    chosen = _chosen([part.tokens for part in parts], edges)
    owner = np.repeat(np.arange(len(parts)), np.diff(edges))
    colours = np.array([list(bytes.fromhex(part.colour[1:])) for part in parts])
    shades = (colours * SHADE).astype(np.uint8)[owner]  # of each column
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
    """Where parts begin and end, in pixels: in proportion, but none less than a least width."""
    least = min(LEAST, SQUARE // (2 * len(counts)))
    widths = least + np.array(counts) / sum(counts) * (SQUARE - least * len(counts))
    return np.rint(np.cumsum([0, *widths])).astype(int)


def _chosen(counts: Sequence[int], edges: np.ndarray) -> np.ndarray:
    """The token that each pixel shows: int64[SQUARE]."""
    starts = np.cumsum([0, *counts])
    widths = np.diff(edges)
    within = [
        np.arange(width) * count // width for width, count in zip(widths, counts, strict=True)
    ]
    return np.concatenate([start + each for start, each in zip(starts, within, strict=False)])


def _ruled(part: Part, begin: int, end: int) -> str:
    """A part's strips on the left and above, and its name where there is room."""
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
    # Names of two boxes in one place stand apart; white around letters keeps them legible.
    base = bottom - 4 if frame.dashed else top + LETTERS + 1
    return box + (
        f'<text x="{left + 3:.1f}" y="{min(max(base, LETTERS), SIDE - 3):.1f}"'
        f' fill="{frame.colour}" stroke="#fff" stroke-width="3" paint-order="stroke"'
        f' font-weight="600">{_escaped(frame.label)}</text>\n'
    )


def _escaped(text: str) -> str:
    """Text as pages hold it, without what XML does not allow."""
    return html.escape(text.translate(NOT_XML))
