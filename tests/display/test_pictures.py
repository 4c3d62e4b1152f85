"""What pages draw, read back by others."""

import base64
import io
import itertools
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from jaxtune.display import pictures
from jaxtune.display.pictures import Frame, Part

PARTS = [
    Part("picture", "#bbdefb", 256),
    Part("prefix", "#eceff1", 5),
    Part("scored", "#b9f6ca", 8),
    Part("padding", "#f3e5f5", 19),
]


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (64, 7), (33, 300)])
def test_a_png_is_read_by_others(shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    with Image.open(io.BytesIO(pictures.png(pixels))) as image:
        assert image.format == "PNG" and image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), pixels)


def test_every_byte_is_told_as_the_model_sees_it():
    values = np.arange(256, dtype=np.uint8)
    image = np.broadcast_to(values[:, None, None], (256, 256, 3))
    seen = image / np.float32(255) * np.float32(2) - np.float32(1)
    np.testing.assert_array_equal(pictures.bytes_of(seen), image)


@pytest.mark.parametrize("side, expected", [(8, 8), (224, 224), (448, 224), (449, 225), (896, 224)])
def test_large_pictures_are_averaged_down(side, expected):
    pixels = np.zeros((side, side, 3), np.float32)
    pixels[:, side // 2 :] = 1
    found = pictures.bytes_of(pixels)
    assert found.shape == (expected, expected, 3)
    assert (found[:, 0] == 128).all() and (found[:, -1] == 255).all()


def square(seen, parts=PARTS):
    """The pixels of an attention picture, and where each part lies in it."""
    svg = ElementTree.fromstring(pictures.attention(seen, parts))
    (image,) = svg.iter("{http://www.w3.org/2000/svg}image")
    data = re.fullmatch(r"data:image/png;base64,(.+)", image.get("href"))[1]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    edges = pictures._edges([part.tokens for part in parts])
    texts = [each.text for each in svg.iter("{http://www.w3.org/2000/svg}text")]
    return pixels, edges, texts


def test_the_parts_of_a_prefix_model_are_told_apart():
    counts = [part.tokens for part in PARTS]
    kinds = np.repeat(range(4), counts)
    order = np.where(kinds < 2, 0, np.arange(len(kinds)))
    seen = (order[None] <= order[:, None]) & (kinds < 3)[None] & (kinds < 3)[:, None]
    pixels, edges, texts = square(seen)
    assert texts == ["picture 256", "prefix 5", "scored 8", "padding 19"]
    assert pixels.shape == (pictures.SQUARE, pictures.SQUARE, 3)
    shown = (pixels != 255).any(-1)
    blocks = [
        [shown[a:b, c:d].mean() for c, d in itertools.pairwise(edges)]
        for a, b in itertools.pairwise(edges)
    ]
    assert blocks[0] == [1, 1, 0, 0] and blocks[1] == [1, 1, 0, 0]
    assert blocks[2][:2] == [1, 1] and blocks[2][3] == 0 and blocks[3] == [0, 0, 0, 0]
    assert 0.5 < blocks[2][2] < 0.65  # a triangle of 8 tokens, its diagonal with it
    assert (np.diff(edges) >= pictures.LEAST).all() and edges[-1] == pictures.SQUARE
    np.testing.assert_array_equal(
        pixels[0, 0], [int(each * pictures.SHADE) for each in (187, 222, 251)]
    )


def test_many_parts_have_room_and_no_names_over_each_other():
    parts = [Part("scored", "#b9f6ca", 3), Part("unscored", "#ffe0b2", 40)] * 30
    seen = np.tri(sum(part.tokens for part in parts), dtype=bool)
    pixels, edges, texts = square(seen, parts)
    assert (np.diff(edges) > 0).all() and edges[-1] == pictures.SQUARE and texts == []
    assert (pixels[0, 1:] == 255).all() and (pixels[-1] != 255).any(-1).all()


def test_frames_lie_where_they_should_and_labels_are_text():
    image = np.zeros((8, 8, 3), np.float32)
    frames = [
        Frame("<b> & \x1b", (0.25, 0.5, 0.75, 1.0), "#e08e0b"),
        Frame("cat", (0, 0, 0.5, 0.5), "#1b9e77", dashed=True),
        Frame("odd", (0.9, 0.9, 0.1, 0.1), "#1b9e77"),
    ]
    svg = ElementTree.fromstring(pictures.framed(image, frames, 'a "name"'))
    assert svg.get("aria-label") == 'a "name"'
    first, second, odd = svg.iter("{http://www.w3.org/2000/svg}rect")
    sides = [float(first.get(name)) / pictures.SIDE for name in ("y", "x", "height", "width")]
    assert sides == [0.25, 0.5, 0.5, 0.5]
    assert first.get("stroke-dasharray") is None and second.get("stroke-dasharray")
    assert odd.get("width") == odd.get("height") == "0.0"
    texts = [each.text for each in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert texts == ["<b> & ", "cat", "odd"]
