"""Tensors that do not match a model are told, however many they are."""

import time

import pytest

from jaxtune.families import names


def test_a_mismatch_of_thousands_of_tensors_is_told_at_once():
    """Comparing each wrong name with thousands of others took minutes."""
    ours = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(9000)]
    parts = [names.Piece(name, (4, 4), slice(0, 4), "layers/mlp/up/w", 0, (4, 4)) for name in ours]
    begun = time.monotonic()
    with pytest.raises(names.NamesError) as caught:
        names.check(parts, {f"x.{name}s": (4, 4) for name in ours})
    assert time.monotonic() - begun < 20
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("9000 missing, 9000 unknown, 0 with a wrong shape")
    assert len(lines) == 10 and lines[-1] == "  … and 17992 more like these"
    assert lines[1].startswith(
        "  missing  model.layers.0.mlp.up_proj.weight (4, 4)  (nearest: x.mo"
    )
