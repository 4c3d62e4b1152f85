"""The step beside torch: the same losses and the same weights, however the rows are laid out."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers

from jaxtune import families, tree
from jaxtune.adapters.lora import add_lora
from jaxtune.checkpoint.placing import oriented
from jaxtune.data.batches import Batch
from jaxtune.families import names
from jaxtune.training import loss
from jaxtune.training.objectives import Forward
from jaxtune.training.optim import optimizer
from jaxtune.training.step import TrainState, compiled_step, train_step
from tests import reference
from tests.adapters.test_lora import MODULES, NAME, adapters, peft_twin
from tests.marks import slow_after

STEPS, ACCUMULATE, ROWS, LENGTH = 30, 2, 2, 20
LR, DECAY, CLIP, WARM = 3e-3, 0.1, 1.0, 3
FULL = ((r"params/.*", True), (r".*", False))


def texts(step: int, count: int = ACCUMULATE * ROWS):
    """Rows of unequal length and unequal prefix: (tokens, the first that is scored)."""
    random = np.random.default_rng(step)
    for _ in range(count):
        length = random.integers(9, LENGTH + 1)
        yield random.integers(3, 300, length), int(random.integers(2, 8))


def padded(rows, width: int = LENGTH) -> Batch:
    """A row a text; [B, T]."""
    return packed([[row] for row in rows], width, positions=False)


def packed(bins, width: int, positions: bool = True) -> Batch:
    """Several texts a row, told apart by segments; [B, T]."""
    shape = (len(bins), width)
    made = {name: np.zeros(shape, np.int32) for name in ("tokens", "segments", "where", "targets")}
    valid, weights = np.zeros(shape, bool), np.zeros(shape, np.float32)
    for row, bin_ in enumerate(bins):
        start = scored = 0
        for number, (text, first) in enumerate(bin_):
            here = slice(start, start + len(text))
            made["tokens"][row, here], made["segments"][row, here] = text, number
            valid[row, here] = True
            run = slice(scored, scored + len(text) - first)
            made["where"][row, run] = np.arange(start + first, start + len(text)) - 1
            made["targets"][row, run] = text[first:]
            weights[row, run] = 1
            start, scored = start + len(text), run.stop
    segments = made.pop("segments") if positions else None
    return Batch(
        positions=None,
        segments=segments if positions else None,
        valid=valid,
        causal=None,
        weights=weights,
        **{name: made[name] for name in ("tokens", "where", "targets")},
    )


def stacked(*batches: Batch) -> Batch:
    """Micro-batches of one shape as one; [A, B, T]."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)


def torch_step(model, rows, parameters, optim, schedule) -> float:
    """One update of the reference, a row at a time, each weighed by what it scores."""
    scored = sum(len(text) - first for text, first in rows)
    optim.zero_grad()
    total = 0.0
    for text, first in rows:
        logits = model(input_ids=torch.from_numpy(text[None])).logits[0]
        labels = torch.from_numpy(text[first:])
        loss = torch.nn.functional.cross_entropy(logits[first - 1 : -1], labels, reduction="sum")
        (loss / scored).backward()
        total += loss.item() / scored
    torch.nn.utils.clip_grad_norm_(parameters, CLIP)
    optim.step()
    schedule.step()
    return total


def torch_optimizer(model):
    """AdamW as the reference trainer sets it up: no decay of norms and biases."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups = [
        {"params": [p for p in trained.values() if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in trained.values() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optim = torch.optim.AdamW(groups, lr=LR)
    schedule = transformers.get_cosine_schedule_with_warmup(optim, WARM, STEPS)
    return list(trained.values()), optim, schedule


def ours():
    return optimizer(
        "adamw",
        "cosine",
        lr=LR,
        weight_decay=DECAY,
        clip_norm=CLIP,
        warmup_steps=WARM,
        total_steps=STEPS,
    )


LAYOUTS = {
    "accumulated": lambda rows: stacked(padded(rows[:ROWS]), padded(rows[ROWS:])),
    "one-batch": padded,
    "packed": lambda rows: packed([rows[:3], rows[3:]], 3 * LENGTH),
}


def followed(model, state, live, layout, record) -> TrainState:
    """Train both for `STEPS` steps and hold every loss against the reference's."""
    optim, torch_parts = ours(), torch_optimizer(live)
    for step in range(STEPS):
        rows = list(texts(step))
        want = torch_step(live, rows, *torch_parts)
        state, metrics = train_step(model, optim, state, layout(rows))
        record("loss, relative difference", abs(float(metrics["loss"]) / want - 1))
        assert float(metrics["loss"]) == pytest.approx(want, rel=1e-4), step
    return state


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_lora_trajectory_is_peft_s(pair, tmp_path, layout, record_property):
    made = pair(NAME)
    variables = add_lora(made.variables, rank=4, alpha=8, key=jax.random.key(0))
    live = peft_twin(made, tmp_path, variables, r=4, lora_alpha=8)
    state = TrainState.create(variables, optimizer=ours())
    state = followed(made.model, state, live, LAYOUTS[layout], record_property)
    trained = dict(live.named_parameters())
    for path, adapter in adapters(state.variables).items():
        for layer in range(3):
            stem = f"base_model.model.model.layers.{layer}.{MODULES[path.split('/')[2]]}"
            for name, leaf in (("lora_A", adapter.a), ("lora_B", adapter.b)):
                want = trained[f"{stem}.{name}.default.weight"].detach().numpy().T
                assert np.linalg.norm(leaf[layer] - want) < 1e-3 * np.linalg.norm(want), path
    # The base is what it was, to the bit.
    params = state.variables["params"]
    jax.tree.map(np.testing.assert_array_equal, params, made.variables["params"])


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["accumulated", "packed"])
def test_full_trajectory_is_torch_s(pair, tmp_path, layout, record_property):
    made = pair(NAME)
    live = reference.make(made.case, tmp_path)
    state = TrainState.create(made.variables, trainable=FULL, optimizer=ours())
    state = followed(made.model, state, live, LAYOUTS[layout], record_property)
    weights = {name: weight.detach().numpy() for name, weight in live.named_parameters()}
    _, family, _ = families.read_config(made.directory)
    found = tree.flatten(state.variables["params"])
    shapes = {path: leaf.shape for path, leaf in found.items()}
    for piece in names.pieces(family.tables[0], shapes):
        want = oriented(weights.__getitem__, piece)
        got = found[piece.path] if piece.layer is None else found[piece.path][piece.layer]
        assert np.linalg.norm(got - want) < 1e-3 * np.linalg.norm(want), piece.theirs


ADDING = optax.identity()  # one for all, so that a shape's program is compiled once


def gradients(made, variables, batch):
    """The step's gradients, by way of an optimiser that adds them to the parameters."""
    state = TrainState.create(variables, optimizer=ADDING)
    before = tree.flatten(jax.tree.map(np.array, state.trainable))
    after, metrics = train_step(made.model, ADDING, state, batch)
    changes = tree.flatten(after.trainable)
    return float(metrics["loss"]), {path: changes[path] - before[path] for path in before}


@pytest.mark.slow
def test_every_layout_gives_the_same_gradients(pair):
    made = pair(NAME)
    variables = add_lora(made.variables, rank=4, key=jax.random.key(0))
    rows = list(texts(0))
    halves = stacked(padded(rows[:2]), padded(rows[2:]))
    # The last window of an epoch: one row, filled up with rows that score nothing.
    short = padded(rows[:3])
    filled = stacked(padded(rows[:2]), padded([rows[2], (rows[3][0], len(rows[3][0]))]))
    for one, other in (
        (padded(rows), halves),
        (padded(rows), LAYOUTS["packed"](rows)),
        (short, filled),
    ):
        loss, want = gradients(made, variables, one)
        other_loss, got = gradients(made, variables, other)
        assert other_loss == pytest.approx(loss, rel=1e-5)
        for path, gradient in want.items():
            distance = np.linalg.norm(got[path] - gradient)
            assert distance <= 1e-5 * max(np.linalg.norm(gradient), 1e-3), path


@pytest.mark.slow
def test_the_loss_in_chunks_is_the_loss_at_once(pair, monkeypatch):
    made = pair("gemma2-windows")  # tied, and soft-capped
    rows = list(texts(1))
    rows = [(text % 200 + 3, first) for text, first in rows]
    batch = padded(rows)

    def value_and_gradients():
        def loss(params):
            return Forward(made.model, {"params": params}, {}).cross_entropy(batch)

        return jax.value_and_grad(loss)(made.variables["params"])

    def written_out(params):
        logits = made.model.apply({"params": params}, batch.tokens, valid=batch.valid)
        scored = jnp.take_along_axis(logits, batch.where[..., None], axis=1)
        chances = jax.nn.log_softmax(scored)
        picked = jnp.take_along_axis(chances, batch.targets[..., None], axis=-1)[..., 0]
        return -(picked * batch.weights).sum()

    want, slopes = jax.value_and_grad(written_out)(made.variables["params"])
    for size in (loss.CHUNK_BYTES, 7 * 4 * 211):  # one chunk, and many with a remainder
        monkeypatch.setattr(loss, "CHUNK_BYTES", size)
        got, found = value_and_gradients()
        assert float(got) == pytest.approx(float(want), rel=1e-5)
        for path, slope in tree.flatten(slopes).items():
            distance = np.linalg.norm(tree.flatten(found)[path] - slope)
            assert distance < 1e-5 * np.linalg.norm(slope), path


@pytest.mark.slow
def test_no_array_spans_batch_sequence_and_vocabulary(pair):
    """In the whole compiled step there are logits for scored positions, and for no others."""
    made = pair("gemma2-windows")
    variables = add_lora(made.variables, rank=2, key=jax.random.key(0))
    rows = [(np.arange(64) % 200 + 3, 56)] * 8
    state = TrainState.create(variables, optimizer=ours())
    batch = short_scored(padded(rows, 64))
    moving = state.replace(frozen=None)
    program = compiled_step.lower(made.model, ours(), moving, state.frozen, batch).compile()
    shapes = re.findall(r"[a-z]+\d+\[([\d,]+)\]", program.as_text())
    spans = [[int(size) for size in shape.split(",")] for shape in shapes]
    # Positions for which an array holds a number a word of the vocabulary.
    covered = {int(np.prod(span)) // 211 for span in spans if 211 in span}
    assert 8 * 8 in covered  # the logits of the scored positions are there
    assert max(covered) < 8 * 64


def short_scored(batch: Batch) -> Batch:
    """Only as many scored positions as there are."""
    most = int((batch.weights > 0).sum(1).max())
    cut = {name: getattr(batch, name)[:, :most] for name in ("where", "targets", "weights")}
    return batch.replace(**cut)


@pytest.mark.slow
def test_numbers_of_the_optimizer_need_no_new_program(pair):
    made = pair(NAME)
    variables = add_lora(made.variables, rank=2, key=jax.random.key(0))
    batch = padded(list(texts(0)))
    before = compiled_step._cache_size()
    for lr in (1e-3, 3e-4, 1e-4):
        optim = optimizer("adamw", lr=lr, weight_decay=lr)
        state = TrainState.create(variables, optimizer=optim)
        state, _ = train_step(made.model, optim, state, batch)
        assert float(state.hyper["lr"]) == pytest.approx(lr)
    assert compiled_step._cache_size() == before + 1


@pytest.mark.slow
def test_the_second_step_is_the_first_one_s_program(pair):
    """A loaded model is bound to its device, and so must be all that is made beside it."""
    made = pair(NAME)
    variables = add_lora(made.variables, rank=3, key=jax.random.key(0))
    state = TrainState.create(variables, optimizer=ours(), rng=jax.random.key(1))
    before = compiled_step._cache_size()
    for step in range(2):
        state, _ = train_step(made.model, ours(), state, padded(list(texts(step))))
    assert compiled_step._cache_size() == before + 1


@pytest.mark.slow
def test_dropout_changes_with_the_step_and_repeats_with_the_seed(pair):
    made = pair(NAME)
    variables = add_lora(made.variables, rank=4, key=jax.random.key(0), dropout=0.3, init="pissa")
    batch = padded(list(texts(0)))
    still = optimizer("sgd", lr=0.0)

    def losses(seed):
        state = TrainState.create(variables, optimizer=still, rng=jax.random.key(seed))
        found = []
        for _ in range(3):
            state, metrics = train_step(made.model, still, state, batch)
            found.append(float(metrics["loss"]))
        return found

    assert len(set(losses(0))) == 3
    assert losses(0) == losses(0)
    assert losses(0) != losses(1)


def test_selections_that_cannot_train(pair):
    variables = pair(NAME).variables
    with pytest.raises(ValueError, match="select no leaf to train; the leaves are params/embed/w"):
        TrainState.create(variables, optimizer=ours())
    packed = {"params": {"w": jnp.zeros((2, 2), jnp.uint8)}}
    with pytest.raises(ValueError, match="params/w is uint8, which cannot be trained"):
        TrainState.create(packed, trainable=FULL, optimizer=ours())


def test_trainable_leaves_are_float32_and_frozen_ones_keep_theirs(pair):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), pair(NAME).variables)
    rules = ((r"params/layers/attn/.*", True), (r".*", False))
    state = TrainState.create(half, trainable=rules, optimizer=ours())
    for path, leaf in tree.flatten(state.variables).items():
        assert leaf.dtype == ("float32" if "/attn/" in path else "bfloat16"), path
    assert all("/attn/" in path for path in tree.flatten(state.opt_state.mu))


@pytest.mark.slow
def test_frozen_leaves_stay_as_they_were_to_the_bit(pair):
    made = pair(NAME)
    variables = add_lora(made.variables, rank=2, key=jax.random.key(0))
    before = {path: np.array(leaf) for path, leaf in tree.flatten(variables).items()}
    state = TrainState.create(variables, optimizer=ours())
    for _ in range(3):
        state, _ = train_step(made.model, ours(), state, padded(list(texts(0))))
    for path, leaf in tree.flatten(state.variables).items():
        changed = np.asarray(leaf).tobytes() != before[path].tobytes()
        assert changed == path.endswith(("/a", "/b")), path


@pytest.mark.parametrize("layout", slow_after(1, ["packed", "padded"]))
def test_a_scored_token_bears_on_nothing_before_it(pair, layout):
    """Were it seen where it is predicted, the loss would be low and nothing learnt."""
    made = pair(NAME)
    rows = list(texts(0, 2))
    batch = padded(rows) if layout == "padded" else packed([rows], 2 * LENGTH)
    place = int(batch.where[0, 0]) + 1  # of the first scored token

    def logits(tokens):
        told = dict(valid=batch.valid, segments=batch.segments)
        return np.asarray(made.apply(made.variables, tokens, **told))[0]

    changed = batch.tokens.copy()
    changed[0, place] = (changed[0, place] + 1) % 300
    one, other = logits(batch.tokens), logits(changed)
    assert (one[:place] == other[:place]).all()
    end, beside = (len(text) for text, _ in rows)
    assert (one[place:end] != other[place:end]).any(axis=-1).all()
    if layout == "packed":  # nor on the row beside it
        assert (one[end : end + beside] == other[end : end + beside]).all()
