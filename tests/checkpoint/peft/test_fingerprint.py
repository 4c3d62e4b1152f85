"""A change of any leaf of a base is told by the fingerprint and named, in every format."""

import dataclasses
import json
import shutil
from pathlib import Path

import bitsandbytes.functional as bitsandbytes
import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import jaxtune
from jaxtune.checkpoint.formats import bnb
from jaxtune.checkpoint.formats.npz import Npz
from jaxtune.checkpoint.formats.safetensors import CheckpointError, Safetensors
from jaxtune.checkpoint.peft.base import Base
from jaxtune.checkpoint.peft.fingerprint import KEY, Fingerprint
from jaxtune.families.names import Piece, by_leaf
from jaxtune.quant import dequantize
from tests.checkpoint.peft.adapters import FUSED, TOWER, WEIGHTS, adapted, check_same
from tests.marks import slow_after

ARCHIVE = Path("configs/tiny_pictures/base/paligemma-tiny-pt-70.f16.npz")
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def standing(directory, *, untied=False) -> Base:
    return Base.at(directory, {"head/w": None} if untied else {})


def with_tensors(base: Base, stored) -> Base:
    """The same base with other tensors; the shapes of its leaves are not derived again."""
    made = dataclasses.replace(base, stored=stored)
    vars(made)["shapes"] = base.shapes
    return made


def arrays_of(stored) -> dict[str, np.ndarray]:
    return {name: np.array(stored.read(name)) for name in stored.tensors}


def negated(arrays, piece):
    """Copies of a checkpoint's arrays with the sign of one piece changed."""
    changed = np.array(arrays[piece.theirs])
    part = changed[piece.layer] if piece.stacked else changed
    part[piece.rows] = -part[piece.rows]
    return {**arrays, piece.theirs: changed}


def every_leaf(base: Base, opened) -> None:
    """Negates each leaf in its last layer; `opened` makes a checkpoint's tensors of arrays."""
    noted, arrays = base.fingerprint(), arrays_of(base.stored)
    again = Fingerprint.noted(noted.note)
    assert again.differences(with_tensors(base, opened(arrays)).fingerprint()) == []
    for path, pieces in by_leaf(base.parts).items():
        changed = with_tensors(base, opened(negated(arrays, pieces[-1])))
        if not pieces[-1].ours(arrays[pieces[-1].theirs]).any():
            continue  # a bias that is zero
        [said] = again.differences(changed.fingerprint(again))
        where = "" if pieces[-1].layer is None else f" in layer {pieces[-1].layer}"
        where = " in all layers" if len(pieces) == 1 and where else where
        assert said == f"{path} differs by 2 of its norm{where}"


@pytest.mark.parametrize(
    "name", slow_after(2, ["llama-mqa-tied-biased", FUSED, TOWER, "gemma2-windows"])
)
def test_every_leaf_of_a_directory(pair, name, tmp_path):
    base = standing(pair(name).directory, untied=name == FUSED)

    def opened(arrays):
        save_file(arrays, tmp_path / "model.safetensors")
        return Safetensors.open(tmp_path)

    every_leaf(base, opened)


@pytest.mark.parametrize("save", slow_after(1, [np.savez, np.savez_compressed]))
def test_every_leaf_of_an_archive(save, tmp_path):
    base = standing(ARCHIVE)
    assert {path.split("/")[0] for path in base.shapes} == {"img", "llm", "projector"}

    def opened(arrays):
        save(tmp_path / "base.npz", **arrays)
        return Npz.open(tmp_path / "base.npz")

    every_leaf(base, opened)


def packed(arrays, double: bool) -> dict[str, np.ndarray]:
    """Arrays with the linear maps of the layers as bitsandbytes stores them."""
    made = {}
    for name, array in arrays.items():
        if not name.endswith("proj.weight"):
            made[name] = array
            continue
        codes, state = bitsandbytes.quantize_4bit(
            torch.from_numpy(array), quant_type="nf4", compress_statistics=double
        )
        made[name] = codes.numpy()
        beside = state.as_dict(packed=True).items()
        made |= {f"{name}.{key.removeprefix('.')}": tensor.numpy() for key, tensor in beside}
    return made


@pytest.mark.parametrize("double", [False, True])
def test_every_leaf_of_a_base_stored_in_four_bits(pair, double, tmp_path):
    """Where its full-precision original is noted too: it is the same base."""
    base = standing(pair("llama-linear").directory, untied=True)
    arrays = arrays_of(base.stored)

    def opened(arrays):
        save_file(packed(arrays, double), tmp_path / "model.safetensors")
        return Safetensors.open(tmp_path)

    coded = with_tensors(base, opened(arrays))
    note, original = coded.fingerprint().note, base.fingerprint()
    assert json.loads(note[KEY])["leaves"]["layers/mlp/up/w"]["coded"] is True
    assert original.differences(coded.fingerprint()) == []
    for path, pieces in by_leaf(base.parts).items():
        other = with_tensors(base, opened(negated(arrays, pieces[1 % len(pieces)])))
        for noted in (Fingerprint.noted(note), original):
            [said] = noted.differences(other.fingerprint())
            assert said.startswith(f"{path} differs by ")
            assert said.endswith(" of its norm in layer 1" if len(pieces) > 1 else " of its norm")


def test_values_of_codes_are_those_of_the_whole_weight(pair, tmp_path):
    arrays = arrays_of(standing(pair("llama-linear").directory).stored)
    for double in (False, True):
        save_file(packed(arrays, double), tmp_path / "model.safetensors")
        stored = Safetensors.open(tmp_path)
        for weight in bnb.packed(stored).values():
            whole = np.asarray(dequantize(bnb.unpack(stored, weight))).T
            index = np.unravel_index(np.arange(whole.size), whole.shape)
            np.testing.assert_allclose(bnb.values(stored, weight, index), whole.ravel(), rtol=1e-6)


@pytest.mark.parametrize("dtype", [BFLOAT16, np.float16])
def test_a_rounded_base_is_the_same(pair, dtype, tmp_path):
    base = standing(pair("llama-linear").directory, untied=True)
    noted, arrays = base.fingerprint(), arrays_of(base.stored)

    def rounded(kind, held):
        save_file(
            {name: array.astype(kind).astype(held) for name, array in arrays.items()},
            tmp_path / "model.safetensors",
        )
        return with_tensors(base, Safetensors.open(tmp_path)).fingerprint()

    found = rounded(dtype, dtype)
    assert noted.differences(found) == found.differences(noted) == []
    assert noted.differences(rounded(dtype, np.float32)) == []
    other = BFLOAT16 if dtype == np.float16 else np.dtype(np.float16)
    assert found.differences(rounded(other, other)) == []


def test_a_small_change_at_the_same_precision_is_told(pair, tmp_path):
    """A thousandth is less than a rounding to bfloat16, and none of it."""
    base = standing(pair("llama-linear").directory, untied=True)
    arrays = arrays_of(base.stored)
    name = "model.layers.2.mlp.up_proj.weight"
    save_file(arrays | {name: arrays[name] * np.float32(1.001)}, tmp_path / "model.safetensors")
    found = with_tensors(base, Safetensors.open(tmp_path)).fingerprint()
    assert base.fingerprint().differences(found) == [
        "layers/mlp/up/w differs by 0.001 of its norm in layer 2"
    ]


def test_many_changes_are_named_in_one_message(pair, directory, tmp_path):
    """The three cases that were accepted: all MLPs, some layers, the embedding."""
    made = pair("llama-linear")
    arrays = load_file(made.directory / "model.safetensors")
    for part, says in (
        (".mlp.", "3 of 12 leaves differ. layers/mlp/down/w differs by 2 of its norm in all layer"),
        (".layers.1.", "9 of 12 leaves differ. .* in layer 1, .* in layer 1, and 5 more. Load"),
        ("embed_tokens", "1 of 12 leaves differ. embed/w differs by 2 of its norm. Load the base"),
    ):
        other = tmp_path / part.strip(".")
        other.mkdir()
        changed = {name: -x if part in name else x for name, x in arrays.items()}
        save_file(changed, other / "model.safetensors")
        shutil.copy(made.directory / "config.json", other)
        model, variables = jaxtune.load(other, quant="nf4" if part == ".mlp." else None)
        with pytest.raises(CheckpointError, match=says):
            jaxtune.load_adapter(model, variables, directory)


def test_the_first_version_is_still_read(pair, directory):
    """Its note had 256 values of one layer, and still tells a change of that layer."""
    made = pair("llama-linear")
    weight = load_file(made.directory / "model.safetensors")[
        "model.layers.0.self_attn.k_proj.weight"
    ]
    flat = weight.T.ravel()
    values = flat[np.linspace(0, flat.size - 1, 256).astype(int)]
    for sign in (1, -1):
        old = {"path": "layers/attn/k/w", "layer": 0, "coded": False}
        old["values"] = [float(f"{sign * value:.6g}") for value in values]
        save_file(load_file(directory / WEIGHTS), directory / WEIGHTS, {KEY: json.dumps(old)})
        if sign == 1:
            again = jaxtune.load_adapter(made.model, made.variables, directory)
            check_same(again, adapted(made))
            continue
        with pytest.raises(CheckpointError, match="layers/attn/k/w differs by 2 of its norm in la"):
            jaxtune.load_adapter(made.model, made.variables, directory)


@pytest.mark.parametrize(
    "note",
    [
        "llama",
        "[" * 100_000,
        "[1]",
        '{"version": 3, "leaves": {}}',
        '{"version": 2, "leaves": {"embed/w": {"count": 64, "values": "AAAA"}}}',
        '{"version": 2, "leaves": {"embed/w": {"count": 0, "values": ""}}}',
        '{"version": 2, "leaves": {"embed/w": 5}}',
        '{"path": "embed/w", "layer": null, "values": [[]], "coded": false}',
    ],
)
def test_a_note_that_is_none_of_ours(note):
    with pytest.raises(CheckpointError, match="jaxtune_base that jaxtune did not write"):
        Fingerprint.noted({KEY: note})


def test_the_note_of_a_large_model_stays_small():
    leaves = {
        f"layers/{number}/w": [
            Piece("x", (4, 4), slice(0, 4), f"layers/{number}/w", layer, (4, 4))
            for layer in range(80)
        ]
        for number in range(12)
    }
    random = np.random.default_rng(0)
    read = lambda piece, places: random.standard_normal(len(places), np.float32)  # noqa: E731
    assert len(Fingerprint.of(leaves, (), read).note[KEY]) < 50_000
