"""Pictures that rows name in object stores, and those that they may not name."""

import numpy as np
import pytest

from jaxtune.data import images
from jaxtune.data.errors import RowError
from jaxtune.files.store import Store
from tests.data.pictures import encoded, noise

PLACE = "faulty://bucket/data/a.jsonl:7"
FOLDER = "faulty://bucket/data"


def located(value, folder=FOLDER):
    (found,) = images.references(value, "image", folder, PLACE)
    return found


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a.png", f"{FOLDER}/a.png"),
        ("x/a.png", f"{FOLDER}/x/a.png"),
        ("../pictures/a.png", "faulty://bucket/pictures/a.png"),
        ("../../../a.png", "faulty://bucket/a.png"),
        ("faulty://bucket/pictures/a.png", "faulty://bucket/pictures/a.png"),
        ("faulty://bucket/../other/a.png", "faulty://bucket/other/a.png"),
    ],
)
def test_rows_in_a_store_reach_all_of_their_bucket(value, expected):
    assert located(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        "faulty://other/a.png",
        "faulty://bucket2/a.png",
        "faulty://me:secret@bucket/a.png",
        "s3://bucket/a.png",
        "http://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
        "/etc/passwd",
        "~/a.png",
    ],
)
def test_and_nothing_else(value):
    with pytest.raises(RowError, match="expected a path relative to faulty://bucket/data, or a U"):
        located(value)


@pytest.mark.parametrize("value", ["s3://bucket/a.png", "http://host/a.png", "file:///etc/passwd"])
def test_rows_on_this_machine_reach_no_store(value):
    with pytest.raises(RowError, match=r"column 'image' names '.*'; expected a path relative to /"):
        located(value, "/data")
    assert located("../a.png", "/data") == "/a.png"


def test_the_store_of_the_folder_of_pictures_counts():
    assert located("a.png", "faulty://pictures") == "faulty://pictures/a.png"


@pytest.mark.slow
def test_pixels_are_those_of_the_same_file(objects, machine, tmp_path):
    data = encoded(noise(8), "png")
    Store(FOLDER).write("a.png", data)
    Store(FOLDER).write("empty.png", b"")
    found = located("a.png")
    images.check(found, PLACE)
    assert images.size(found) == len(data)
    np.testing.assert_array_equal(images.read(found, 8, PLACE), images.read(data, 8, PLACE))
    with pytest.raises(RowError, match=f"{FOLDER}/none.png: no such object"):
        images.check(located("none.png"), PLACE)
    with pytest.raises(RowError, match="the object is empty"):
        images.check(located("empty.png"), PLACE)
