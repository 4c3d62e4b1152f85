"""Checkpoints that transformers and bitsandbytes packed, read without them."""

import json

import bitsandbytes.functional as bitsandbytes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch

from jaxtune import quant
from jaxtune.checkpoint.formats import bnb
from jaxtune.checkpoint.formats.safetensors import CheckpointError, Safetensors

PROJECTION = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(autouse=True)
def _one_thread():
    """torch's sum of many scales depends on how many threads share it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "double"])
def saved(request, tmp_path_factory):
    """A tiny Llama, its directory and that of what bitsandbytes made of it."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig

    torch.manual_seed(0)
    sizes = dict(vocab_size=128, hidden_size=64, intermediate_size=192, num_hidden_layers=2)
    heads = dict(num_attention_heads=4, num_key_value_heads=2)
    plain, packed = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("packed")
    AutoModelForCausalLM.from_config(LlamaConfig(**sizes, **heads)).save_pretrained(plain)
    options = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=request.param,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = AutoModelForCausalLM.from_pretrained(
        plain, quantization_config=options, dtype=torch.float32, device_map="cpu"
    )
    model.save_pretrained(packed)
    return model, plain, packed


def test_weights_are_those_of_the_live_model(saved):
    model, _, directory = saved
    stored = Safetensors.open(directory)
    weights = bnb.packed(stored)
    assert len(weights) == 2 * 7
    for name, weight in weights.items():
        live = model.get_parameter(name)
        expected = bitsandbytes.dequantize_4bit(live.data, live.quant_state)
        ours = bnb.unpack(stored, weight)
        assert ours.shape == tuple(expected.shape[::-1])
        np.testing.assert_array_equal(quant.dequantize(ours).T, expected.numpy())


def test_what_is_read_is_what_quantising_gives(saved):
    model, plain, directory = saved
    dense, stored = Safetensors.open(plain), Safetensors.open(directory)
    nested = model.get_parameter(PROJECTION).quant_state.nested
    read = bnb.unpack(stored, bnb.packed(stored)[PROJECTION])
    made = quant.quantize(dense.read(PROJECTION).T, "nf4-double" if nested else "nf4")
    assert jax.tree.structure(read) == jax.tree.structure(made)
    jax.tree.map(np.testing.assert_array_equal, read, made)


def test_shapes_are_those_of_the_plain_checkpoint(saved):
    _, plain, directory = saved
    stored = Safetensors.open(directory)
    expected = {name: info.shape for name, info in Safetensors.open(plain).tensors.items()}
    assert bnb.shapes(stored, bnb.packed(stored)) == expected


def test_some_outputs_are_those_of_the_whole(saved):
    *_, directory = saved
    stored = Safetensors.open(directory)
    weight = bnb.packed(stored)[PROJECTION]
    whole = quant.dequantize(bnb.unpack(stored, weight))
    some = quant.dequantize(bnb.unpack(stored, weight, slice(8, 24)))
    np.testing.assert_array_equal(some, whole[:, 8:24])


def write(directory, w, change=lambda tensors: None, double=True, kind="nf4", blocksize=64):
    """A checkpoint of one packed weight, and what bitsandbytes reads from it."""
    codes, state = bitsandbytes.quantize_4bit(
        torch.from_numpy(w), blocksize=blocksize, quant_type=kind, compress_statistics=double
    )
    tensors = {"w": codes, **{f"w.{k}": v for k, v in state.as_dict(packed=True).items()}}
    tensors = {name: tensor.numpy() for name, tensor in tensors.items()}
    change(tensors)
    safetensors.numpy.save_file(tensors, directory / "model.safetensors")
    return Safetensors.open(directory), bitsandbytes.dequantize_4bit(codes, state).numpy()


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("kind, blocksize", [("nf4", 128), ("fp4", 64)])
def test_other_blocks_and_codes(tmp_path, kind, blocksize, double):
    stored, expected = write(
        tmp_path, normal(24, 256), double=double, kind=kind, blocksize=blocksize
    )
    ours = bnb.unpack(stored, bnb.packed(stored)["w"])
    np.testing.assert_array_equal(quant.dequantize(ours).T, expected)


@pytest.mark.slow
def test_an_odd_number_of_values(tmp_path):
    w = normal(5, 7)  # in one block: bitsandbytes' CPU kernel is right about it
    stored, expected = write(tmp_path, w)
    ours = bnb.unpack(stored, bnb.packed(stored)["w"])
    np.testing.assert_array_equal(quant.dequantize(ours).T, expected)
    with pytest.raises(
        CheckpointError, match=r"share blocks, because .* inputs are not a multiple of 64"
    ):
        bnb.unpack(stored, bnb.packed(stored)["w"], slice(0, 2))


def test_bytes_kept_as_another_dtype(tmp_path):
    def change(tensors):
        tensors["w"] = tensors["w"].reshape(-1).view(np.float32)

    stored, expected = write(tmp_path, normal(8, 128), change)
    np.testing.assert_array_equal(
        quant.dequantize(bnb.unpack(stored, bnb.packed(stored)["w"])).T, expected
    )


def test_scales_of_an_unknown_map_become_plain(tmp_path):
    def change(tensors):
        tensors["w.nested_quant_map"] = tensors["w.nested_quant_map"] * np.float32(0.5)

    stored, _ = write(tmp_path, normal(8, 128), change)
    tensors = {name: stored.read(name) for name in stored.tensors}
    ours = bnb.unpack(stored, bnb.packed(stored)["w"])
    offset = json.loads(tensors["w.quant_state.bitsandbytes__nf4"].tobytes())["nested_offset"]
    peak = tensors["w.nested_absmax"]
    scales = tensors["w.nested_quant_map"][tensors["w.absmax"]] * peak + np.float32(offset)
    assert (ours.kind, ours.scales.dtype) == ("nf4", jnp.float32)
    np.testing.assert_array_equal(ours.scales.T.reshape(-1), scales)


def without(name):
    return lambda tensors: tensors.pop(name)


def with_state(text):
    name = "w.quant_state.bitsandbytes__nf4"
    return lambda tensors: tensors.update({name: np.frombuffer(text.encode(), np.uint8)})


def recast(name, dtype):
    return lambda tensors: tensors.update({name: tensors[name].astype(dtype)})


def renamed(tensors):
    tensors["w.quant_state.bitsandbytes__nf5"] = tensors.pop("w.quant_state.bitsandbytes__nf4")


@pytest.mark.parametrize(
    "change, message",
    [
        (without("w.absmax"), "no tensor w.absmax"),
        (without("w"), "no tensor w$"),
        (without("w.quant_map"), "w.quant_map is missing"),
        (with_state("{"), "expected JSON with the shape and blocksize of w"),
        (
            with_state('{"shape": [8], "blocksize": 64}'),
            "expected JSON with the shape and blocksize of w",
        ),
        (with_state('{"shape": [8, 256], "blocksize": 64}'), "1024 bytes and 32 scales"),
        *(
            (with_state(f'{{"shape": [8, 128], {rest}}}'), "expected JSON with the shape and bloc")
            for rest in (
                '"blocksize": 0',
                '"blocksize": 63',
                '"blocksize": 64.5',
                '"blocksize": 64, "nested_blocksize": "256"',
                '"blocksize": 64, "nested_blocksize": 256, "nested_offset": 1e999',
                f'"blocksize": {"9" * 5000}',
            )
        ),
        (with_state('{"a":' * 100_000), "expected JSON with the shape and blocksize of w"),
        (with_state("[1]"), "expected JSON with the shape and blocksize of w"),
        (without("w.nested_absmax"), "w.nested_absmax: expected 1 numbers, found no such tensor"),
        (without("w.nested_quant_map"), "w.nested_quant_map: expected 256 numbers, found no such"),
        (recast("w.absmax", np.int8), "w.absmax: expected uint8 codes, found int8"),
        (
            with_state('{"shape": [8, 128], "blocksize": 64}'),
            "w.absmax: expected floating-point scales, found uint8",
        ),
        (renamed, "'nf5': expected one of nf4, fp4"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, change, message):
    stored, _ = write(tmp_path, normal(8, 128), change)
    with pytest.raises(CheckpointError, match=message):
        bnb.unpack(stored, bnb.packed(stored)["w"])
