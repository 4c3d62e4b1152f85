"""Pictures against big_vision's own steps written in TensorFlow, and against Pillow."""

import io
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from PIL import Image, ImageOps

from jaxtune.data import images
from jaxtune.data.errors import RowError
from jaxtune.data.images import check, read
from tests.data.pictures import encoded, noise

pytestmark = pytest.mark.slow
PLACE = "a.jsonl:7"
TAG = images.ORIENTATION


def tensorflow():
    import tensorflow

    return tensorflow


def big_vision(data, size):
    """`decode|resize(size, antialias=True)|value_range(-1, 1)`, in a graph that knows no shape."""
    tf = tensorflow()

    def pipeline(data):
        image = tf.io.decode_image(data, channels=3, expand_animations=False)
        dtype = image.dtype
        image = tf.image.resize(image, [size, size], method="bilinear", antialias=True)
        image = tf.cast(tf.clip_by_value(image, dtype.min, dtype.max), dtype)
        image = (tf.cast(image, tf.float32) - 0.0) / (255.0 - 0.0)
        return -1 + image * (1 - -1)

    return next(iter(tf.data.Dataset.from_tensors(data).map(pipeline))).numpy()


def pixels_of(data, orientation=1):
    """What `read` resizes: uint8[H, W, 3]."""
    return images._upright(images._decoded(data, data, PLACE), data)


ANIMATION = [Image.fromarray(noise(seed=seed)).convert("P") for seed in range(3)]
ENCODED = {
    "jpeg": partial(encoded, noise(), "JPEG", quality=90),
    "progressive": partial(encoded, noise(), "JPEG", progressive=True),
    "grey jpeg": partial(encoded, noise(), "JPEG", mode="L"),
    "cmyk jpeg": partial(encoded, noise(), "JPEG", mode="CMYK"),
    "png": partial(encoded, noise(), "PNG"),
    "large png": partial(encoded, noise(480, 640), "PNG"),
    "grey png": partial(encoded, noise(), "PNG", mode="L"),
    "black and white png": partial(encoded, noise(), "PNG", mode="1"),
    "palette png": partial(encoded, noise(), "PNG", mode="P"),
    "transparent palette png": partial(encoded, noise(), "PNG", mode="P", transparency=3),
    "png with alpha": partial(encoded, noise(channels=4), "PNG"),
    "grey png with alpha": partial(encoded, noise(), "PNG", mode="LA"),
    "16-bit png": partial(encoded, noise().astype(np.uint16)[..., 0] * 257, "PNG"),
    "gif": partial(encoded, noise(), "GIF", mode="P"),
    "animation": partial(encoded, ANIMATION[0], "GIF", save_all=True, append_images=ANIMATION[1:]),
    "bmp": partial(encoded, noise(), "BMP"),
    "grey bmp": partial(encoded, noise(), "BMP", mode="L"),
    "bmp with alpha": partial(encoded, noise(channels=4), "BMP"),
    "webp": partial(encoded, noise(), "WEBP"),
    "lossless webp": partial(encoded, noise(), "WEBP", lossless=True),
    "webp with alpha": partial(encoded, noise(channels=4), "WEBP", lossless=True),
}


# Pixels


@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize("kind", [kind for kind in ENCODED if kind != "webp with alpha"])
def test_pixels_are_those_of_big_vision_to_the_bit(kind, size):
    data = ENCODED[kind]()
    found = read(data, size, PLACE)
    assert found.shape == (size, size, 3) and found.dtype == np.float32
    assert np.array_equal(found, big_vision(data, size))


def test_every_value_is_scaled_as_big_vision_scales_it():
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, -1)
    found = read(encoded(ramp, "PNG"), 16)
    assert np.array_equal(found, big_vision(encoded(ramp, "PNG"), 16))
    assert len(np.unique(found)) == 256 and (found.min(), found.max()) == (-1, 1)


# Lossless kinds exactly; TensorFlow's JPEG decoder takes the fast DCT, as big_vision leaves it,
# which strays from Pillow's by up to 4 of 256 steps.
@pytest.mark.parametrize("kind", ENCODED)
def test_pixels_are_those_that_pillow_sees(kind):
    data = ENCODED[kind]()
    image = Image.open(io.BytesIO(data))
    if kind == "16-bit png":
        expected = (np.asarray(image) >> 8).astype(np.uint8)[..., None].repeat(3, -1)
    else:
        expected = np.asarray(image.convert("RGBA" if "transparent" in kind else "RGB"))[..., :3]
    apart = np.abs(pixels_of(data).astype(int) - expected).max()
    assert apart <= (4 if "jpeg" in kind or kind == "progressive" else 0)


def test_an_alpha_channel_is_dropped():
    """That of a WebP too, which big_vision refuses."""
    clear = np.concatenate([noise(), np.zeros((41, 67, 1), np.uint8)], -1)
    opaque = encoded(noise(), "PNG")
    assert np.array_equal(read(encoded(clear, "PNG"), 32), read(opaque, 32))
    webp = encoded(clear, "WEBP", lossless=True, exact=True)
    assert np.array_equal(read(webp, 32), read(opaque, 32))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_lies_as_its_exif_orientation_says(orientation, order):
    exif = Image.Exif()
    exif.endian = order
    exif[0x010F] = "maker"  # a tag before it
    exif[TAG] = orientation
    upright = pixels_of(encoded(noise(), "JPEG"))
    turned = Image.fromarray(upright)
    turned.getexif()[TAG] = orientation
    expected = np.asarray(ImageOps.exif_transpose(turned))
    data = encoded(noise(), "JPEG", exif=exif)
    assert data.count({"<": b"Exif\0\0II", ">": b"Exif\0\0MM"}[order]) == 1
    assert np.array_equal(pixels_of(data), expected)
    assert (expected.shape[:2] == (67, 41)) == (orientation > 4)


@pytest.mark.parametrize("cut", range(0, 60, 7))
def test_a_damaged_exif_block_turns_nothing(cut):
    exif = Image.Exif()
    exif[TAG] = 6
    data = encoded(noise(), "JPEG", exif=exif)
    start = data.index(b"Exif\0\0")
    length = int.from_bytes(data[start - 2 : start], "big") - 2
    zeros = bytes(max(0, length - 6 - cut))
    broken = data[: start + length - len(zeros)] + zeros + data[start + length :]
    assert len(broken) == len(data) and images._orientation(data) == 6
    assert images._orientation(broken) in (0, 1, 6)
    assert images._orientation(data[: start + cut]) in (0, 1, 6)
    assert pixels_of(broken).shape in ((41, 67, 3), (67, 41, 3))


def test_paths_and_bytes_are_the_same_picture(tmp_path):
    data = encoded(noise(), "JPEG")
    (tmp_path / "a.jpg").write_bytes(data)
    expected = read(data, 32)
    assert np.array_equal(read(tmp_path / "a.jpg", 32), expected)
    assert np.array_equal(read(str(tmp_path / "a.jpg"), 32), expected)


# What is no picture


@pytest.mark.parametrize(
    "data, problem",
    [
        (b"", "the file is empty"),
        (b"hello", "unknown format: it begins with b'hello'; expected JPEG, PNG, GIF, BMP, WebP"),
        (encoded(noise(), "TIFF"), "unknown format: it begins with b'II"),
        (encoded(noise(), "JPEG")[:1500], "is damaged or truncated: "),
        (encoded(noise(), "JPEG")[:-200], "is damaged or truncated: "),
        (encoded(noise(), "PNG")[:1500], "is damaged or truncated: Invalid PNG data"),
        (encoded(noise(), "BMP")[:1500], "is damaged or truncated: "),
        (encoded(noise(), "GIF")[:1500], "is damaged or truncated: "),
        (encoded(noise(), "WEBP")[:500], "is damaged or truncated: "),
        (b"\xff\xd8\xff" + b"junk" * 50, "is damaged or truncated: "),
        (
            encoded(noise(), "BMP", mode="P"),
            "is a BMP with a palette, which is not supported; save it as PNG",
        ),
        (encoded(noise(), "BMP", mode="1"), "is a BMP with 1 bits per pixel and compression 0"),
        (
            encoded(noise(), "WEBP", save_all=True, append_images=[Image.fromarray(noise(seed=1))]),
            "is an animated WebP, which is not supported; save it as PNG",
        ),
    ],
)
def test_what_cannot_be_read_is_told_with_row_and_file(tmp_path, data, problem):
    file = tmp_path / "a.jpg"
    file.write_bytes(data)
    with pytest.raises(RowError) as caught:
        read(file, 32, PLACE)
    assert str(caught.value).startswith(f"{PLACE}: picture {file}: {problem}")
    assert "\n" not in str(caught.value)


def test_a_picture_that_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    for path, kind in ((tmp_path / "a.jpg", "a named pipe"), (tmp_path, "a directory")):
        with pytest.raises(RowError, match=f"{PLACE}: picture .* is {kind}, not a file"):
            check(str(path), PLACE)


def test_pictures_in_rows_are_named_by_their_size():
    with pytest.raises(RowError, match=r"^a.jsonl:7: the picture in the row \(500 bytes\): is dam"):
        read(encoded(noise(), "PNG")[:500], 32, PLACE)


# TensorFlow


def test_tensorflow_is_quiet_and_keeps_off_the_accelerator(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(noise(), "PNG"))
    code = """
import os, sys
from jaxtune.data import images
before = dict(os.environ)
images.read(sys.argv[1], 32)
try:
    images.read(open(sys.argv[1], "rb").read()[:500], 32)
except ValueError:
    print("damaged")
assert dict(os.environ) == before
import tensorflow
print(tensorflow.config.threading.get_intra_op_parallelism_threads())
"""
    ran = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.png"], capture_output=True, text=True
    )
    assert (ran.stdout, ran.stderr) == ("damaged\n1\n", "")


def test_accelerators_are_hidden_from_tensorflow(monkeypatch):
    told = []
    monkeypatch.setattr(
        tensorflow().config,
        "set_visible_devices",
        lambda devices, kind: told.append((kind, devices)),
    )
    images._tensorflow.cache_clear()
    read(encoded(noise(), "PNG"), 32)
    assert told == [("GPU", []), ("TPU", [])]


def test_without_tensorflow_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    images._tensorflow.cache_clear()
    with pytest.raises(ValueError, match=r"tensorflow is not installed: run pip.*\[pictures\]"):
        read(encoded(noise(), "PNG"), 32)
