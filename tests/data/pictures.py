"""Pictures made for tests: blobs and noise, encoded by Pillow, and how a tiny model sees them."""

import io

import numpy as np
from PIL import Image

from jaxtune.data.images import Pictures


def noise(height=41, width=67, channels=3, seed=0):
    """A picture of blobs and noise: uint8[H, W, C]."""
    chance = np.random.default_rng(seed)
    rough = chance.integers(0, 256, (height // 8 + 1, width // 8 + 1, channels), np.uint8)
    smooth = np.kron(rough, np.ones((8, 8, 1), np.uint8))[:height, :width]
    return smooth // 2 + chance.integers(0, 128, smooth.shape, np.uint8)


def encoded(pixels, form, mode=None, **options):
    """The bytes of a picture, as Pillow writes it."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    out = io.BytesIO()
    (image.convert(mode) if mode else image).save(out, form, **options)
    return out.getvalue()


EVERYTHING = (("crop", 0.5), ("flip", 0.5), ("colour", 0.4))
PICTURES = Pictures(size=16, tokens=5, token=9999)
