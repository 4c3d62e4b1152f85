"""Pictures against big_vision's own steps written in TensorFlow, and against Pillow.

All that imports TensorFlow is here, so that a run pays for that once.
"""

import io
import subprocess
import sys
from functools import partial

import jax
import numpy as np
import pytest
from PIL import Image, ImageOps

from jaxtune.data import images
from jaxtune.data.errors import RowError
from jaxtune.data.examples import RowEncoder, columns
from jaxtune.data.images import Pictures, read
from jaxtune.data.loader import Loader
from jaxtune.data.sources import open_source
from jaxtune.data.survey import survey

pytestmark = pytest.mark.slow
PLACE = "a.jsonl:7"
TAG = images.ORIENTATION


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
        (b"hello", "is none of JPEG, PNG, GIF, BMP, WebP: it begins with b'hello'"),
        (encoded(noise(), "TIFF"), "is none of JPEG"),
        (encoded(noise(), "JPEG")[:1500], "is damaged or cut short: "),
        (encoded(noise(), "JPEG")[:-200], "is damaged or cut short: "),
        (encoded(noise(), "PNG")[:1500], "is damaged or cut short: Invalid PNG data"),
        (encoded(noise(), "BMP")[:1500], "is damaged or cut short: "),
        (encoded(noise(), "GIF")[:1500], "is damaged or cut short: "),
        (encoded(noise(), "WEBP")[:500], "is damaged or cut short: "),
        (b"\xff\xd8\xff" + b"junk" * 50, "is damaged or cut short: "),
        (encoded(noise(), "BMP", mode="P"), "is a BMP with a palette; save it as PNG"),
        (encoded(noise(), "BMP", mode="1"), "is a BMP of 1 bits a pixel in compression 0"),
        (
            encoded(noise(), "WEBP", save_all=True, append_images=[Image.fromarray(noise(seed=1))]),
            "is an animated WebP; save it as PNG",
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


def test_pictures_in_rows_are_named_by_their_size():
    with pytest.raises(RowError, match=r"^a.jsonl:7: the picture in the row \(500 bytes\): is dam"):
        read(encoded(noise(), "PNG")[:500], 32, PLACE)


# Augmentation


EVERYTHING = (("crop", 0.5), ("flip", 0.5), ("colour", 0.4))


def test_what_chance_does_depends_on_the_key_alone():
    data = encoded(noise(), "PNG")
    keys = [(seed, epoch, row, 0) for seed in (0, 1) for epoch in (0, 1) for row in (0, 1, 2)]
    found = [read(data, 32, augment=EVERYTHING, key=key) for key in keys]
    for key, first in zip(keys[::-1], found[::-1], strict=True):
        assert np.array_equal(read(data, 32, augment=EVERYTHING, key=key), first)
    assert len({each.tobytes() for each in found}) == len(keys)
    assert all(each.dtype == np.float32 and np.abs(each).max() <= 1 for each in found)


def test_no_augmentation_changes_another():
    data = encoded(noise(), "PNG")
    plain, mirrored = read(data, 32), read(data, 32)[:, ::-1]
    for row in range(20):
        key = (0, 0, row, 0)
        alone = read(data, 32, augment=[("flip", 0.5)], key=key)
        assert np.array_equal(alone, plain) or np.array_equal(alone, mirrored)
        beside = read(data, 32, augment=[("colour", 0.0), ("flip", 0.5)], key=key)
        # Brightness, contrast and colour are multiplied by 1, which rounds.
        assert np.abs(alone - beside).max() < 1e-5


def test_flipping_is_as_frequent_as_it_should_be():
    data = encoded(noise(8, 8), "PNG")
    plain = read(data, 8)
    for share in (0.0, 0.25, 1.0):
        found = [read(data, 8, augment=[("flip", share)], key=(0, 0, row)) for row in range(200)]
        # Five standard deviations of 200 throws are below 0.16.
        flipped = np.mean([not np.array_equal(each, plain) for each in found])
        assert abs(flipped - share) < (0.16 if share % 1 else 1e-9)


@pytest.mark.parametrize("share", [0.3, 0.8, 1.0])
def test_a_crop_keeps_its_share_of_the_area(share):
    rows, places = np.mgrid[:41, :67].astype(np.uint8)
    where = np.stack([rows, places, rows], -1)  # every pixel says where it was
    kept = []
    for seed in range(200):
        part = images._cropped(where, share, np.random.default_rng(seed))
        kept.append(part.shape[0] * part.shape[1] / (41 * 67))
        assert (np.diff(part[:, 0, 0]) == 1).all() and (np.diff(part[0, :, 1]) == 1).all()
    assert min(kept) >= share and min(kept) < share + 0.1
    assert share == 1 or np.std(kept) > 0.01


def test_unknown_augmentations_are_refused():
    with pytest.raises(ValueError, match="augmentation 'blur' is not one of 'crop', 'flip', 'col"):
        read(encoded(noise(), "PNG"), 32, augment=[("blur", 1.0)], key=(0,))


# Steps


PICTURES = Pictures(size=16, tokens=5, token=9999)


@pytest.fixture
def loader(tmp_path, write, tokenizer):
    """Loaders of rows with one picture each, or with up to three."""

    def picture(number):
        name = f"{number}.png"
        (tmp_path / name).write_bytes(encoded(noise(20, 30, seed=number), "PNG"))
        return name

    def make(batch=4, several=False, **options):
        rows = [
            {
                "prefix": "a " * (row * 7 % 23),
                "suffix": f" {row}",
                "image": [picture(3 * row + n) for n in range(1 + row % 3)]
                if several
                else picture(row),
            }
            for row in range(19)
        ]
        source = open_source(write("a.jsonl", rows))
        prompt = RowEncoder(tokenizer("gemma"), columns(), 96, full_prefix=True, pictures=PICTURES)
        found = survey(source, prompt)
        assert found.pictures.tolist() == [1 + row % 3 if several else 1 for row in range(19)]
        make.examples = {
            source.place(row): prompt(source[row], source.place(row)) for row in range(19)
        }
        return Loader(source, prompt, found, **{"batch": batch, "workers": 0, **options})

    make.folder = tmp_path
    return make


def flat(step):
    """The pictures of a step in the order of its rows: float32[n, S, S, 3]; the lines' counts."""
    lines = step.batch.tokens.reshape(-1, step.batch.tokens.shape[-1])
    counts = (lines == PICTURES.token).sum(-1) // PICTURES.tokens
    seen = step.batch.images.reshape(-1, *step.batch.images.shape[-4:])
    return [seen[line, slot] for line, n in enumerate(counts) for slot in range(n)], counts


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("packing", [False, True])
def test_a_step_holds_its_rows_pictures_in_their_order(loader, packing, several):
    made = loader(2, several, accumulate=2, packing=packing, seed=1)
    depths = set()
    for step in made:
        assert step.batch.images.dtype == np.float32
        assert step.batch.images.shape[:2] == (2, 2) and step.batch.images.shape[3:] == (16, 16, 3)
        expected = [each for place in step.places for each in loader.examples[place].images]
        found, counts = flat(step)
        assert all(map(np.array_equal, found, [read(each, 16) for each in expected]))
        assert len(found) == len(expected)
        depth = step.batch.images.shape[2]
        assert counts.max() <= depth < max(2, 2 * counts.max())
        assert depth & (depth - 1) == 0
        filling = np.arange(depth)[None] >= counts[:, None]
        assert not step.batch.images.reshape(4, depth, -1)[filling].any()
        depths.add(depth)
    assert (depths == {1}) == (not packing and not several)


@pytest.mark.parametrize("packing", [False, True])
def test_processes_share_the_pictures_of_one(loader, packing):
    how = {"packing": packing, "several": True, "seed": 2, "epochs": 2, "augment": EVERYTHING}
    whole = list(loader(4, accumulate=2, **how))
    shares = [list(loader(4, accumulate=2, process=(index, 2), **how)) for index in range(2)]
    for step, *parts in zip(whole, *shares, strict=True):
        leaves = jax.tree.map(lambda *each: np.concatenate(each, 1), *(p.batch for p in parts))
        for one, other in zip(*map(jax.tree.leaves, (leaves, step.batch)), strict=True):
            assert np.array_equal(one, other)


def test_augmentation_depends_on_seed_epoch_and_row_alone(loader):
    def seen(**how):
        made = loader(epochs=2, augment=EVERYTHING, **how)
        found = {}
        for step in made:
            pictures, _ = flat(step)
            for place, pixels in zip(step.places, pictures, strict=True):
                found[step.epoch, place] = pixels.tobytes()
        made.close()
        return found

    first = seen(batch=4, seed=0)
    assert len(first) == 38 and len(set(first.values())) == 38
    assert seen(batch=3, seed=5, packing=True, workers=2) == first
    assert not set(seen(batch=4, augment_seed=1).values()) & set(first.values())


def test_a_picture_that_is_damaged_stops_the_run_by_its_rows_name(loader):
    made = loader(4, workers=2)
    file = loader.folder / "9.png"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(RowError, match=r"a\.jsonl:10: picture .*/9\.png: is damaged or cut short"):
        list(made)
    made.close()


def test_rows_of_a_dataset_and_of_parquet_hold_pictures(tmp_path, tokenizer):
    import datasets

    data = [encoded(noise(seed=n), "JPEG") for n in range(4)]
    rows = [{"bytes": each, "path": f"{n}.jpg"} for n, each in enumerate(data)]
    for name, kind in (("image", datasets.Image()), ("images", datasets.List(datasets.Image()))):
        held = rows if name == "image" else [rows[:2], rows[1:]]
        texts = ["hello"] * len(held)
        made = datasets.Dataset.from_dict(
            {"prefix": texts, "suffix": texts, name: held},
            features=datasets.Features(
                prefix=datasets.Value("string"), suffix=datasets.Value("string"), **{name: kind}
            ),
        )
        made.save_to_disk(tmp_path / name)
        made.to_parquet(tmp_path / f"{name}.parquet")
        prompt = RowEncoder(tokenizer("gemma"), columns(), 96, pictures=PICTURES, image=name)
        for spec in (tmp_path / name, tmp_path / f"{name}.parquet"):
            source = open_source(spec)
            found = [prompt(source[n], source.place(n)).images for n in range(len(source))]
            assert found == (
                [(e,) for e in data] if name == "image" else [(*data[:2],), (*data[1:],)]
            )


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
    with pytest.raises(ValueError, match="decoded by TensorFlow, and there is no tensorflow: pip"):
        read(encoded(noise(), "PNG"), 32)
