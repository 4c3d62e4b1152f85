"""The examples run, and show what they say."""

import json

import numpy as np
import pytest

from examples import (
    attention,
    distillation,
    learning_rate,
    own_task,
    select_rows,
    some_layers,
    two_adapters,
)


@pytest.mark.slow
def test_a_learning_rate_is_found(capsys):
    assert 1e-4 <= learning_rate.main(steps=14) <= 1e-1
    assert "try optim.lr=" in capsys.readouterr().out


@pytest.mark.slow
def test_two_adapters_are_trained_and_saved(tmp_path):
    losses = two_adapters.main(steps=3, directory=str(tmp_path))
    assert len(losses) == 2 and losses[0] != losses[1]
    for number in "01":
        config = json.loads((tmp_path / number / "adapter_config.json").read_text())
        assert config["r"] == 8


@pytest.mark.slow
def test_a_student_comes_nearer_to_its_teacher():
    found = distillation.main(steps=8)
    assert found[-1]["loss"] < 0.6 * found[0]["loss"]


@pytest.mark.slow
def test_only_the_layers_that_are_meant_move():
    found = some_layers.main(steps=4)
    assert found["norms"][-1] < found["norms"][0]
    assert found["attention"][-1] < found["attention"][0]
    moved = np.flatnonzero(found["layers"])
    assert moved.tolist() == [2, 3, 4]


@pytest.mark.slow
def test_rows_are_ranked_by_their_gain(capsys):
    gains = select_rows.main(warm=3, count=8)
    assert np.isfinite(gains).all() and len(set(gains.tolist())) == 8
    assert len(capsys.readouterr().out.splitlines()) == 4


@pytest.mark.slow
def test_a_task_outside_the_package_is_learnt(capsys):
    found = own_task.main()
    assert found["right"] > 0.5 and found["known"] > 0.5
    assert "right: 0.00 -> " in capsys.readouterr().out


@pytest.mark.slow
def test_attention_is_measured_as_by_hand(capsys):
    found = attention.main()
    layers, rows, heads, length, _ = found.weights.shape
    assert (layers, rows, heads) == (6, 3, 4) and found.outputs.shape == (6, 3, length, 256)
    assert len(capsys.readouterr().out.splitlines()) == 2 + layers * heads + layers
    seen = found.weights.transpose(1, 3, 0, 2, 4)[found.valid]  # [positions, L, N, T]
    np.testing.assert_allclose(seen.sum(-1), 1, rtol=1e-5)
    assert not np.triu(found.weights, 1)[:, found.valid[:, None].repeat(heads, 1)].any()
    sums = {name: np.zeros((layers, heads)) for name in ("entropy", "distance", "first")}
    for row in range(rows):
        size = found.valid[row].sum()
        for query in range(size):
            shares = found.weights[:, row, :, query, : query + 1].astype(np.float64)
            sums["first"] += shares[..., 0]
            sums["distance"] += sum(shares[..., key] * (query - key) for key in range(query + 1))
            with np.errstate(divide="ignore", invalid="ignore"):
                sums["entropy"] -= np.nansum(shares * np.log(shares), axis=-1)
        np.testing.assert_array_equal(found.most[:, row], shares.argmax(-1))
    for name, each in sums.items():
        np.testing.assert_allclose(getattr(found, name), each / found.valid.sum(), rtol=1e-4)


@pytest.mark.slow
def test_distances_and_entropies_of_attention_that_is_known():
    """One layer and head of two rows; the second has a position of padding."""
    even = np.tril(np.ones((3, 3), np.float32)) / [[1], [2], [3]]
    back = np.float32([[1, 0, 0], [1, 0, 0], [0, 0, 1]])
    valid = np.array([[True] * 3, [True, True, False]])
    outputs = np.float32([[[[1, 0]] * 3, [[0, 2]] * 3], [[[1, 0]] * 3, [[2, 0]] * 3]])
    found = attention.measured(np.stack([even, back])[None, :, None], outputs, valid)
    assert found.distance[0, 0] == pytest.approx((0 + 0.5 + 1 + 0 + 1) / 5)
    assert found.entropy[0, 0] == pytest.approx((np.log(2) + np.log(3)) / 5)
    assert found.first[0, 0] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 + 1) / 5)
    assert found.most[0, :, 0].tolist() == [0, 0]
    assert found.norms.tolist() == pytest.approx([(3 * 1 + 2 * 2) / 5] * 2)
    assert found.turns.tolist() == pytest.approx([3 / 5])
