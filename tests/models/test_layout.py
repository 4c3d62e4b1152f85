"""Masks against the rule written out token by token."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune.models.layout import arrange, lengths, mask

T = 12
SEGMENTS = np.array([[0] * 4 + [1] * 5 + [2] * 3, [7] * 6 + [3] * 6])
VALID = np.array([[True] * 11 + [False], [True] * 8 + [False] * 4])
LEFT_PADDED = np.array([[False] * 3 + [True] * 9, [True] * 12])
# In the first row a prefix of three; in the second a block of three inside the text.
CAUSAL = np.array([[False] * 3 + [True] * 9, [True] * 5 + [False] * 2 + [True] * 5])
WINDOW = 4


def allowed(row, query, key, segments, valid, causal, window) -> bool:
    """Whether a token may see another: the rule in words, one pair at a time."""
    if not valid[row, key] or not valid[row, query] or segments[row, key] != segments[row, query]:
        return False
    first = min(i for i in range(T) if valid[row, i] and segments[row, i] == segments[row, query])
    if (query - first) - (key - first) >= window:
        return False
    # Ahead only within one block, that is with no causal token on the way there.
    return key <= query or not causal[row, query + 1 : key + 1].any()


@pytest.mark.parametrize("window", [WINDOW, 100])
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"segments": SEGMENTS},
        {"valid": VALID},
        {"causal": CAUSAL},
        {"valid": LEFT_PADDED},
        {"segments": SEGMENTS, "valid": VALID},
        {"segments": SEGMENTS, "valid": VALID, "causal": CAUSAL},
    ],
    ids=lambda given: "+".join(given) or "plain",
)
def test_masks(given, window):
    layout = arrange((2, T), **{name: jnp.asarray(value) for name, value in given.items()})
    got = np.asarray(mask(layout, layout, window))
    everything = np.ones((2, T), bool)
    segments = given.get("segments", np.zeros((2, T)))
    valid, causal = given.get("valid", everything), given.get("causal", everything)
    for row, query, key in np.ndindex(2, T, T):
        if valid[row, query]:  # what padding sees does not matter, as nothing sees padding
            expected = allowed(row, query, key, segments, valid, causal, window)
            assert got[row, query, key] == expected, (row, query, key)
        assert not got[row, query, key] or valid[row, key]


def test_positions_restart_with_segments():
    layout = arrange((2, T), segments=jnp.asarray(SEGMENTS))
    assert layout.position.tolist() == [
        [0, 1, 2, 3, 0, 1, 2, 3, 4, 0, 1, 2],
        [0, 1, 2, 3, 4, 5] * 2,
    ]


def test_positions_leave_padding_on_the_left_out():
    layout = arrange((2, T), valid=jnp.asarray(LEFT_PADDED))
    assert layout.position[0, 3:].tolist() == list(range(9))
    assert layout.position[1].tolist() == list(range(12))


def test_given_positions_are_kept():
    positions = jnp.arange(5, 5 + T)[None].repeat(2, 0)
    layout = arrange((2, T), positions, segments=jnp.asarray(SEGMENTS))
    assert (layout.position == positions).all()


def test_lengths_are_those_of_each_sequence():
    packed = arrange((2, T), segments=jnp.asarray(SEGMENTS), valid=jnp.asarray(VALID))
    assert lengths(packed)[0, :11].tolist() == [4] * 4 + [5] * 5 + [2] * 2
    assert lengths(packed)[1, :8].tolist() == [6] * 6 + [2] * 2
    assert (lengths(arrange((2, T))) == T).all()
