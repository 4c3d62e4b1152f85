"""The training step over a mesh: the losses and weights of one device, and what travels."""

import subprocess
import sys
import textwrap

import pytest

from tests import devices, tiny

STEPS = """
    import math, re, sys

    import jax, numpy as np
    from jax.sharding import NamedSharding

    import jaxtune
    from jaxtune import sharding, tree
    from jaxtune.data.batches import Batch
    from jaxtune.runs.plan import traffic
    from jaxtune.training.objectives import CROSS_ENTROPY
    from jaxtune.training.optim import optimizer
    from jaxtune.training.step import TrainState, compiled_step, train_step

    directory, quant, kind = sys.argv[1:]
    assert len(jax.devices()) == 8
    VOCABULARY = 512
    FULL = ((r"params/.*", True), (r".*", False))

    def rows(step):
        random = np.random.default_rng(step)
        tokens = random.integers(3, 300, (16, 32)).astype(np.int32)
        valid = np.arange(32) < random.integers(24, 33, (16, 1))
        where = np.broadcast_to(np.arange(3, 31, dtype=np.int32), (16, 28))
        targets = np.take_along_axis(tokens, where + 1, axis=1)
        weights = np.take_along_axis(valid, where + 1, axis=1).astype(np.float32)
        positions = np.broadcast_to(np.arange(32, dtype=np.int32), tokens.shape)
        return Batch(tokens, positions, 0 * positions, valid, None, where, targets, weights)

    def run(axes):
        mesh = sharding.make_mesh(axes) if axes else None
        model, variables = jaxtune.load(directory, "float32", quant or None, mesh=mesh)
        if kind == "lora":
            variables = jaxtune.add_lora(variables, rank=4, key=jax.random.key(0))
        made = optimizer("adamw", lr=3e-3)
        rules = {} if kind == "lora" else dict(trainable=FULL)
        state = TrainState.create(variables, optimizer=made, **rules)
        place = lambda leaf: leaf
        if mesh:
            state = jax.device_put(state, sharding.of_state(state, mesh))
            spec = sharding.fitted(sharding.ROWS, (16,), mesh)
            place = lambda leaf: jax.device_put(leaf, NamedSharding(mesh, spec))
        batches = [jax.tree.map(place, rows(step)) for step in range(4)]
        given = (state.replace(frozen=None), state.frozen, batches[0], CROSS_ENTROPY)
        text = compiled_step.lower(model, made, *given).compile().as_text()
        losses = []
        for batch in batches:
            state, metrics = train_step(model, made, state, batch)
            losses.append(float(metrics["loss"]))
        return model, losses, jax.device_get(tree.flatten(state.trainable)), traffic.measure(text)

    model, alone, expected, _ = run(None)
    for axes in (dict(fsdp=8), dict(data=2, fsdp=2, tensor=2), dict(fsdp=2, tensor=4)):
        _, losses, found, sent = run(axes)
        # Sums in another order, in float32.
        np.testing.assert_allclose(losses, alone, rtol=1e-5)
        for path, leaf in expected.items():
            # Adam divides by the root of the second moment: where that is small, rounding shows.
            far = np.abs(found[path] - leaf)
            assert np.mean(far > 1e-5) < 1e-2 and far.max() < 3e-3, (path, far.max())
        assert not sent.unknown
        scored = 16 * 28
        for each in sent.collectives:
            shapes = re.findall(r"f32\\[([\\d,]+)\\]", each.shape)
            sizes = [math.prod(map(int, shape.split(","))) for shape in shapes]
            # Logits stay where they are, and so do the weights that are stored as codes.
            assert max(sizes, default=0) < scored * VOCABULARY // 8, each
            if quant and axes == dict(fsdp=8) and each.kind == "all-gather" and each.times > 1:
                assert max(sizes, default=0) < 32 * 32 // 8, each
    print("agreed")
"""


# A head of its own, which does not train; the embedding as a head; the same, which trains.
CASES = {
    "lora": (dict(model_type="llama", layer_types=None, tie_word_embeddings=False), "", "lora"),
    "qlora": ({}, "nf4-double", "lora"),
    "full": ({}, "", "full"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_on_eight_devices_steps_are_those_of_one(tmp_path, case):
    changes, *given = CASES[case]
    base = tiny.write_base(tmp_path / "base", **changes)
    command = [sys.executable, "-c", textwrap.dedent(STEPS), str(base), *given]
    done = subprocess.run(command, env=devices.environment(8), capture_output=True, text=True)
    assert "agreed" in done.stdout, done.stderr[-3000:]
