"""Batches against the examples in them: everything once, in its place, and a loss the same."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune.data.batches import Batch, collate, fitting, sizes, split
from jaxtune.data.examples import Example
from jaxtune.data.packing import one_each, packed
from jaxtune.models.layout import arrange, mask

VOCABULARY = 50


def example(chance, length, *, block=False):
    """Random tokens, a few of them scored, after a prefix that may be a block."""
    tokens = chance.integers(1, VOCABULARY, length).astype(np.int32)
    first = int(chance.integers(1, length))
    scored = (np.arange(length) >= first) & (chance.random(length) < 0.7)
    scored[first] = True
    causal = np.arange(length) >= first if block else None
    return Example(tokens, scored, causal, f"a.jsonl:{chance.integers(1000)}")


def examples(seed, count, longest=30, **options):
    chance = np.random.default_rng(seed)
    return [example(chance, int(chance.integers(2, longest + 1)), **options) for _ in range(count)]


def counted(found):
    lengths = np.array([len(each.tokens) for each in found], np.int32)
    return lengths, np.array([each.scored.sum() for each in found], np.int32)


def on_lines(found, limit, packing, **options):
    lengths, scored = counted(found)
    lines = packed(lengths, scored, limit, **options) if packing else one_each(lengths, scored)
    return [[found[row] for row in lines[line]] for line in range(len(lines))]


# Packing


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("window", [1, 5, 64, 1000])
def test_packing_puts_every_row_on_one_line_that_holds_it(seed, window):
    chance = np.random.default_rng(seed)
    lengths = chance.integers(1, 65, int(chance.integers(1, 300))).astype(np.int32)
    scored = chance.integers(1, lengths + 1).astype(np.int32)
    lines = packed(lengths, scored, 64, window=window, seed=seed if seed % 2 else None)
    members = [lines[line].tolist() for line in range(len(lines))]
    assert sorted(row for line in members for row in line) == list(range(len(lengths)))
    assert lines.lengths.tolist() == [lengths[line].sum() for line in members]
    assert lines.scored.tolist() == [scored[line].sum() for line in members]
    assert max(lines.lengths) <= 64
    if window == 1:
        assert len(lines) == len(lengths)


def test_packing_fills_lines_well_and_depends_on_its_window_alone():
    lengths = np.random.default_rng(0).integers(10, 200, 4000).astype(np.int32)
    lines = packed(lengths, lengths, 512, window=500)
    assert lengths.sum() / (len(lines) * 512) > 0.99
    half = packed(lengths[:2000], lengths[:2000], 512, window=500)
    assert all((lines[line] == half[line]).all() for line in range(len(half)))
    shuffled = [packed(lengths, lengths, 512, seed=seed) for seed in (3, 3, 4)]
    assert shuffled[0].rows.tolist() == shuffled[1].rows.tolist() != shuffled[2].rows.tolist()


# Batches


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("block", [False, True])
def test_everything_is_there_once(seed, packing, block):
    found = examples(seed, 20, block=block)
    lines = on_lines(found, 64, packing)
    shape = (len(lines) + 2, 64, 70)  # with two lines to spare
    batch = collate(lines, shape=shape, pad=VOCABULARY, full_prefix=block)
    seen = []
    for row, line in enumerate(lines):
        at = 0
        for segment, each in enumerate(line):
            part = slice(at, at + len(each.tokens))
            assert batch.tokens[row, part].tolist() == each.tokens.tolist()
            assert batch.positions[row, part].tolist() == list(range(len(each.tokens)))
            assert (batch.segments[row, part] == segment).all() and batch.valid[row, part].all()
            if block:
                assert (batch.causal[row, part] == each.causal).all()
            seen += [(row, at + p) for p in np.flatnonzero(each.scored)]
            at = part.stop
        assert not batch.valid[row, at:].any()
        assert (batch.tokens[row, at:] == VOCABULARY).all()
    counts = batch.weights > 0
    assert batch.weights.sum() == counts.sum() == sum(each.scored.sum() for each in found)
    rows, _ = np.nonzero(counts)
    where, targets = batch.where[counts], batch.targets[counts]
    assert sorted(zip(rows.tolist(), (where + 1).tolist(), strict=True)) == sorted(seen)
    assert (batch.tokens[rows, where + 1] == targets).all()
    # What predicts a token is of the same example, and just before it.
    assert (batch.segments[rows, where] == batch.segments[rows, where + 1]).all()
    assert not batch.valid[len(lines) :].any() and not batch.weights[len(lines) :].any()
    assert (batch.causal is None) != block
    dtypes = {"valid": bool, "causal": bool, "weights": np.float32}
    for name in Batch.__dataclass_fields__:
        if getattr(batch, name) is not None:
            assert getattr(batch, name).dtype == dtypes.get(name, np.int32), name


@pytest.mark.parametrize("packing", [False, True])
def test_weights_by_example_sum_to_one_for_each(packing):
    found = examples(0, 30)
    lines = on_lines(found, 64, packing)
    batch = collate(lines, shape=(len(lines), 64, 70), weighting="example")
    for row, line in enumerate(lines):
        owner = batch.segments[row, batch.where[row]]
        for segment in range(len(line)):
            total = batch.weights[row][(owner == segment) & (batch.weights[row] > 0)].sum()
            assert total == pytest.approx(1, abs=1e-6)
    assert batch.weights.sum() == pytest.approx(len(found), abs=1e-4)
    with pytest.raises(ValueError, match="weighting 'row' is not one of 'token', 'example'"):
        collate(lines, shape=(len(lines), 64, 70), weighting="row")


def losses(batch):
    """One attention layer's weighted loss over what a batch says is scored, and its weights."""
    return [float(total) for total in _losses(batch)]


@jax.jit
def _losses(batch):
    chance = np.random.default_rng(0)
    table, place, head = (
        jnp.asarray(chance.normal(size=size), jnp.float32)
        for size in ((VOCABULARY + 1, 16), (64, 16), (16, VOCABULARY + 1))
    )
    layout = arrange(batch.tokens.shape, batch.positions, batch.segments, batch.valid, batch.causal)
    x = table[batch.tokens] + place[layout.position]
    allowed = mask(layout, layout, 1000)
    scores = jnp.where(allowed, jnp.einsum("btd,bsd->bts", x, x) / 4, -1e30)
    x = x + jnp.einsum("bts,bsd->btd", jax.nn.softmax(scores), x)
    hidden = jnp.take_along_axis(x, batch.where[..., None], axis=1)
    logits = jax.nn.log_softmax(hidden @ head)
    found = -jnp.take_along_axis(logits, batch.targets[..., None], axis=2)[..., 0]
    return jnp.sum(found * batch.weights), jnp.sum(batch.weights)


@pytest.mark.parametrize("weighting", ["token", "example"])
@pytest.mark.parametrize("block", [False, True])
def test_packed_is_unpacked(weighting, block):
    found = examples(7, 40, block=block)
    totals = []
    for packing in (False, True):
        lines = on_lines(found, 64, packing)
        shape = (40, 64, 64)  # filler lines in the one, none in the other
        batch = collate(lines, shape=shape, weighting=weighting, full_prefix=block)
        totals.append(losses(batch))
    loss, packed_loss = totals
    # Sums in float32, in another order.
    assert packed_loss == pytest.approx(loss, rel=1e-5)
    assert losses(batch.replace(segments=0 * batch.segments))[0] != pytest.approx(loss[0], rel=1e-3)
    assert losses(batch.replace(positions=0 * batch.positions))[0] != pytest.approx(
        loss[0], rel=1e-3
    )


def test_micro_batches_are_the_lines_in_order():
    found = examples(3, 10)
    batch = collate(on_lines(found, 64, False), shape=(12, 64, 64), full_prefix=True)
    assert split(batch, 3).images is None
    batch = batch.replace(images=np.random.default_rng(0).random((12, 2, 4, 4, 3)))
    parts = split(batch, 3)
    assert parts.tokens.shape == (3, 4, 64) and parts.where.shape == (3, 4, 64)
    for name in Batch.__dataclass_fields__:
        array = getattr(batch, name)
        assert (getattr(parts, name).reshape(array.shape) == array).all()
    assert parts.valid[2, :2].any() and not parts.valid[2, 2:].any()
    with pytest.raises(ValueError, match="12 lines cannot be split into 5 equal micro-batches"):
        split(batch, 5)


def test_a_row_that_does_not_fit_is_named():
    found = examples(3, 1)
    with pytest.raises(ValueError, match=r"a.jsonl:\d+: \d+ tokens do not fit on a line of 4"):
        collate([found], shape=(1, 4, 4))


@pytest.mark.parametrize("longest", [1, 31, 32, 33, 100, 1024, 3000])
def test_sizes_are_few_and_close(longest):
    found = sizes(longest)
    assert found[-1] == longest and list(found) == sorted(set(found))
    assert all(b <= 1.5 * a for a, b in itertools.pairwise(found))
    assert len(found) <= 2 * max(1, longest.bit_length() - 4)
    for length in range(1, longest + 1):
        size = fitting(length, found)
        assert size >= length and (size <= 1.5 * length or size == found[0])


def test_sizes_and_what_does_not_fit_them():
    assert sizes(256) == (32, 48, 64, 96, 128, 192, 256)
    with pytest.raises(ValueError, match="300 tokens exceed the largest size, 256"):
        fitting(300, sizes(256))
