"""Augmentation of pictures: what chance does to one depends on its key alone."""

import numpy as np
import pytest

from jaxtune.data import images
from jaxtune.data.images import read
from tests.data.pictures import EVERYTHING, encoded, noise

pytestmark = pytest.mark.slow


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
