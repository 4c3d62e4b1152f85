"""Pictures in rows of data sets and in the steps of the loader, in the order of the rows."""

from collections import Counter

import jax
import numpy as np
import pytest

from jaxtune.data.errors import DataError, RowError
from jaxtune.data.examples import RowEncoder, columns
from jaxtune.data.images import read
from jaxtune.data.loader import Loader
from jaxtune.data.sources import open_source
from jaxtune.data.survey import survey
from tests.data.pictures import EVERYTHING, PICTURES, encoded, noise

pytestmark = pytest.mark.slow


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
    whole = file.read_bytes()
    file.write_bytes(whole[:200].ljust(len(whole), b"\0"))
    with pytest.raises(RowError, match=r"a\.jsonl:10: picture .*/9\.png: is damaged or truncated"):
        list(made)
    made.close()


def test_a_picture_of_another_size_is_another_picture(loader):
    made = loader(4, workers=2)
    file = loader.folder / "9.png"
    file.write_bytes(encoded(noise(40, 50, seed=1), "PNG"))
    with pytest.raises(DataError, match=r"a\.jsonl:10: the row or a picture of it changed"):
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


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("packing", [False, True])
def test_numbers_of_pictures_are_known_before(loader, several, packing):
    how = dict(accumulate=2, packing=packing, seed=1, several=several)
    made = loader(2, **how)
    found = made.outlook(0, made.steps)
    steps = list(made)
    shapes = [
        (step.batch.tokens.shape[2], step.batch.where.shape[2], step.batch.images.shape[2])
        for step in steps
    ]
    assert found.shapes == Counter(shapes)
    blank = made.blank(shapes[0])
    for one, two in zip(*map(jax.tree.leaves, (blank, steps[0].batch)), strict=True):
        assert (one.shape, one.dtype) == (two.shape, two.dtype)
    assert not blank.images.any() and steps[0].batch.images.any()
