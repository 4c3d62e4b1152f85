"""From files to steps: every row once over all processes, resumed anywhere, packed or not."""

import json
import os
from collections import Counter
from operator import ge

import jax
import numpy as np
import pytest

from jaxtune.data import loader as loading
from jaxtune.data.batches import Batch
from jaxtune.data.datafile import FileChanged
from jaxtune.data.errors import DataError
from jaxtune.data.examples import RowEncoder, columns
from jaxtune.data.loader import Loader
from jaxtune.data.sources import open_source
from jaxtune.data.survey import survey
from tests.marks import slow_after

ROWS = [{"prefix": "a " * (n * 7 % 23), "suffix": f" {n}" * (1 + n % 5)} for n in range(53)]


@pytest.fixture
def loader(write, tokenizer):
    file = write("a.jsonl", [*ROWS[:10], [], *ROWS[10:]])  # a malformed line among them
    prompt = RowEncoder(tokenizer("gemma"), columns(), 96)
    source = open_source(file)
    found = survey(source, prompt, malformed="skip")

    def make(batch=4, **options):
        return Loader(source, prompt, found, **{"batch": batch, "workers": 0, **options})

    make.examples = {
        source.place(row): prompt(source[row], source.place(row)) for row in found.rows.tolist()
    }
    return make


def same(a: Batch, b: Batch) -> bool:
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(x.shape == y.shape and (x == y).all() for x, y in leaves)


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("batch, accumulate", [(4, 1), (2, 3), (4, 5)])
def test_an_epoch_trains_every_row_once(loader, packing, batch, accumulate):
    steps = list(loader(batch, accumulate=accumulate, packing=packing, seed=3, epochs=2))
    for epoch in (0, 1):
        of_it = [step for step in steps if step.epoch == epoch]
        places = [place for step in of_it for place in step.places]
        assert sorted(places) == sorted(loader.examples)
        assert sum(step.examples for step in of_it) == 53
        scored = sum(step.batch.weights.sum() for step in of_it)
        assert scored == sum(each.scored.sum() for each in loader.examples.values())
    for step in steps:
        assert step.batch.tokens.shape[:2] == (accumulate, batch)


@pytest.mark.parametrize("packing", [False, True])
def test_places_name_the_rows_of_a_batch_in_order(loader, packing):
    for step in loader(4, accumulate=2, packing=packing, seed=1):
        tokens = step.batch.tokens[step.batch.valid].tolist()
        expected = [n for place in step.places for n in loader.examples[place].tokens.tolist()]
        assert tokens == expected


def test_shapes_are_few(loader):
    shapes = {step.batch.tokens.shape[2] for step in loader(4, seed=0, epochs=5)}
    assert shapes <= {32, 48, 64, 96} and len(shapes) > 1
    assert {step.batch.tokens.shape[2] for step in loader(4, packing=True, seed=0)} == {96}


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_very_batches_of_one(loader, packing, count):
    how = {"accumulate": 3, "packing": packing, "seed": 2, "epochs": 2}
    whole = list(loader(4, **how))
    shares = [list(loader(4, process=(index, count), **how)) for index in range(count)]
    for step, *parts in zip(whole, *shares, strict=True):
        leaves = [part.batch for part in parts]
        assert same(
            jax.tree.map(lambda *arrays: np.concatenate(arrays, axis=1), *leaves), step.batch
        )
        assert sorted(place for part in parts for place in part.places) == sorted(step.places)
        assert {part.examples for part in parts} == {step.examples}
    with pytest.raises(ValueError, match="4 lines cannot be split evenly among 3 processes"):
        loader(4, process=(0, 3))


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("workers", slow_after(1, [3, 0]))
def test_going_on_with_other_threads_and_processes(loader, packing, workers):
    how = {"accumulate": 2, "packing": packing, "seed": 2, "epochs": 3}
    whole = list(loader(4, **how))
    for taken in (0, 1, 2, len(whole) - 1):
        first = loader(4, workers=workers, **how)
        for _ in range(taken):
            next(first)
        again = loader(4, workers=3 - workers, process=(1, 2), **how)
        again.restore(first.state())
        first.close()
        for found, step in zip(again, whole[taken:], strict=True):
            share = jax.tree.map(lambda array: array[:, 2:], step.batch)
            assert found.number == step.number and same(found.batch, share)


def test_going_on_with_other_data_is_refused(loader, write, tokenizer):
    state = loader(4).state()
    source = open_source(write("b.jsonl", [*ROWS[:-1], {"prefix": "a", "suffix": "other"}]))
    prompt = RowEncoder(tokenizer("gemma"), columns(), 96)
    changed = Loader(source, prompt, survey(source, prompt), batch=4)
    with pytest.raises(
        DataError, match=r"a.jsonl: no longer among the files\n  .*b.jsonl: was not"
    ):
        changed.restore(state)


OTHER = {**ROWS[-1], "suffix": " 25" * 3}  # as many tokens
STATES = {"longer": ROWS + ROWS[:1], "same lengths": [*ROWS[:-1], OTHER]}


@pytest.mark.parametrize("way", STATES)
def test_rows_that_changed_between_starts_are_named(write, tokenizer, way):
    prompt = RowEncoder(tokenizer("gemma"), columns(), 96)

    def made(rows, **options):
        source = open_source(write("a.jsonl", rows))
        return Loader(source, prompt, survey(source, prompt), batch=4, workers=0, **options)

    state = json.loads(json.dumps(made(ROWS).state()))
    made(ROWS).restore(state)  # written anew with the same rows
    with pytest.raises(DataError) as error:
        made(STATES[way]).restore(state)
    message = str(error.value)
    assert message.startswith("cannot resume, because the rows of data.source changed after")
    assert "a.jsonl: " in message and ", now " in message and "contents was" not in message
    assert ("53 rows, now 54" in message) == (way == "longer")
    assert message.endswith("\nRestore the files, or name another --workdir for a new run")
    old = {name: state[name] for name in ("step", "items", "each", "seed", "contents")}
    made(ROWS).restore(old)  # as runs saved it before files were known
    if way == "longer":
        with pytest.raises(DataError, match=r"saved\nRestore the files"):
            made(STATES[way]).restore(old)


def test_held_out_files_that_changed_between_starts_are_named(write, tokenizer):
    prompt = RowEncoder(tokenizer("gemma"), columns(), 96)

    def made(name, rows):
        source = open_source(write(name, rows))
        return Loader(source, prompt, survey(source, prompt), batch=4, workers=0)

    before = json.loads(json.dumps(made("a.jsonl", ROWS).files))
    made("a.jsonl", ROWS).check_files(before)
    made("b.jsonl", ROWS[:9]).check_files(before)  # another source, which the config names
    made("a.jsonl", ROWS[:9]).check_files([])  # a checkpoint that knows no files
    with pytest.raises(DataError, match=r"the held-out rows changed .*\n.*: 53 rows, now 9"):
        made("a.jsonl", ROWS[:9]).check_files(before)


def test_other_examples_of_the_same_files_are_told_apart(write, tokenizer):
    source = open_source(write("a.jsonl", ROWS))
    long, short = (
        RowEncoder(tokenizer("gemma"), columns(), limit, too_long="cut_prefix")
        for limit in (96, 30)
    )
    state = Loader(source, long, survey(source, long), batch=4).state()
    with pytest.raises(DataError, match="although the files are the same: a setting, the token"):
        Loader(source, short, survey(source, short), batch=4).restore(state)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("way", ["another row", "no row"])
def test_a_file_rewritten_during_a_run_stops_it(write, tokenizer, way, workers):
    file = write("a.jsonl", ROWS)
    source, prompt = open_source(file), RowEncoder(tokenizer("gemma"), columns(), 96)
    made = Loader(source, prompt, survey(source, prompt), batch=4, epochs=None, workers=workers)
    next(made)
    old, times = file.read_bytes(), (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    file.write_bytes(old.replace(b" 3", b" 4") if way == "another row" else b"[" * len(old))
    with pytest.raises(FileChanged, match=r"a\.jsonl: the file changed while .*written .*, now"):
        for _ in range(20):
            next(made)
    made.close()
    if way == "another row":  # with its time set back, as a copy that keeps times has it
        os.utime(file, ns=times)
        made = Loader(source, prompt, survey(open_source(file), prompt), batch=4, workers=0)
        file.write_bytes(old)
        os.utime(file, ns=times)
        with pytest.raises(DataError, match=r"a\.jsonl:\d+: the row changed after all rows were"):
            list(made)


def test_weighting_and_steps(loader):
    made = loader(4, weighting="example", seed=0)
    assert made.steps == made.steps_per_epoch == 14
    for step in made:
        assert step.batch.weights.sum() == pytest.approx(len(step.places), abs=1e-5)
    assert loader(4, packing=True, seed=0).steps == -(-len(loader(4, packing=True).lines) // 4)


def test_evaluation_goes_through_rows_in_their_order(loader):
    places = [place for step in loader(8) for place in step.places]
    assert places == list(loader.examples)


def test_a_full_prefix_reaches_every_batch(write, tokenizer):
    source = open_source(write("a.jsonl", ROWS[:5]))
    prompt = RowEncoder(tokenizer("gemma"), columns(), 96, full_prefix=True)
    found = survey(source, prompt)
    for index in (0, 1):  # the second has no row in the last step
        for step in Loader(source, prompt, found, batch=4, process=(index, 2), workers=0):
            assert step.batch.causal.shape == step.batch.tokens.shape


def test_buckets_that_are_named_are_the_only_lengths(loader):
    made = loader(batch=2, buckets=(24, 96), seed=1)
    steps = list(made)
    assert {step.batch.tokens.shape[-1] for step in steps} == {24, 96}
    for step in steps:
        assert step.tokens == step.batch.valid.sum()
        assert step.scored == step.batch.weights.sum()


LAYOUTS = [
    dict(),
    dict(accumulate=3, seed=4),
    dict(accumulate=2, packing=True, seed=1),
    dict(buckets=(64, 96), seed=2),
]


def shape_of(step) -> tuple[int, int, int]:
    return step.batch.tokens.shape[2], step.batch.where.shape[2], 0


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_what_batches_will_be_like_is_known_before(loader, layout):
    how = {"epochs": 2, **layout}
    found = loader(**how).outlook(2, loader(**how).steps)
    steps = list(loader(**how))[2:]
    assert found.shapes == Counter(map(shape_of, steps))
    positions = sum(step.batch.valid.size for step in steps)
    assert found.padding == pytest.approx(1 - sum(step.tokens for step in steps) / positions)
    for shape in found.shapes:
        assert any(all(map(ge, large, shape)) for large in found.largest)
    for large in found.largest:  # each is needed: it is a step's, and no other one covers it
        assert large in found.shapes
        others = [other for other in found.largest if other != large]
        assert not any(all(map(ge, other, large)) for other in others)


def test_of_a_long_run_a_part_is_counted_and_the_largest_shape_is_added(loader, monkeypatch):
    monkeypatch.setattr(loading, "COUNTED", 3)
    first = {shape_of(step) for step in list(loader(1))[:3]}
    every = {shape_of(step) for step in loader(1)}
    found = loader(1).outlook(0, 10**9)
    assert found.shapes.keys() == first and found.shapes.total() == 3
    largest = tuple(max(sizes) for sizes in zip(*every, strict=True))
    assert found.largest == (largest,)
    assert largest not in first  # without it, a larger batch would have come unexpected
    assert loader(1).outlook(0, 3).largest != (largest,)


def test_of_no_steps_there_is_no_padding(loader):
    found = loader().outlook(5, 5)
    assert (found.shapes, found.largest, found.padding) == (Counter(), (), 0.0)


@pytest.mark.parametrize("process", [(0, 1), (1, 2)])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_blank_batch_is_one_of_padding_in_the_shapes_of_a_step(loader, layout, process):
    made = loader(process=process, **layout)
    step = next(made)
    blank = made.blank(shape_of(step))
    assert jax.tree.structure(blank) == jax.tree.structure(step.batch)
    for one, two in zip(*map(jax.tree.leaves, (blank, step.batch)), strict=True):
        assert (one.shape, one.dtype) == (two.shape, two.dtype)
    assert not blank.weights.any() and not blank.valid.any()
    assert step.batch.weights.any()
