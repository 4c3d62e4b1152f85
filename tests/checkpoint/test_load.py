"""Checkpoints into variables: what arrives, where, at what cost, and what is refused."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxtune
from jaxtune import tree
from jaxtune.checkpoint import load as loading
from jaxtune.checkpoint import placing
from jaxtune.checkpoint.formats.safetensors import CheckpointError, Safetensors
from jaxtune.families import FamilyError
from tests import devices, reference
from tests.processes import free_port

NAME = "llama-linear"


@pytest.fixture
def copied(pair, tmp_path):
    """A checkpoint of one's own, to damage; returns its directory."""
    target = tmp_path / "checkpoint"
    shutil.copytree(pair(NAME).directory, target)
    return target


def change(directory: Path, **changes) -> None:
    """Change tensors of a checkpoint; None removes one, and a name may have `__` for its dots."""
    file = directory / "model.safetensors"
    tensors = load_file(file)
    for name, value in changes.items():
        name = name.replace("__", ".")
        if value is None:
            del tensors[name]
        else:
            tensors[name] = np.asarray(value)
    save_file(tensors, file, metadata={"format": "pt"})


def configure(directory: Path, **changes) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_dtypes(pair):
    directory = pair(NAME).directory
    for dtype, compute, activations in (
        ("float32", "auto", jnp.float32),
        ("bfloat16", "auto", jnp.float32),  # on a CPU, which keeps these and computes in no less
        ("float16", "auto", jnp.float32),
        ("bfloat16", "bfloat16", jnp.bfloat16),
        ("auto", "auto", jnp.float32),
    ):
        model, variables = jaxtune.load(directory, dtype=dtype, compute=compute)
        held = {leaf.dtype for leaf in jax.tree.leaves(variables)}
        assert held == {jnp.dtype("float32" if dtype == "auto" else dtype)}
        assert model.dtype == activations


def test_the_way_to_attend_reaches_the_model(pair):
    model, variables = jaxtune.load(pair(NAME).directory, attention="splash")
    with pytest.raises(ValueError, match="attention 'splash' does not support this call: 8 tokens"):
        model.apply(variables, np.zeros((1, 8), np.int32))


def test_conversion_rounds_as_numpy_does(pair):
    directory = pair(NAME).directory
    _, variables = jaxtune.load(directory, dtype="bfloat16")
    stored = load_file(directory / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    np.testing.assert_array_equal(
        variables["params"]["layers"]["mlp"]["up"]["w"][1], stored.T.astype(jnp.bfloat16)
    )


def test_auto_keeps_the_widest_dtype_of_a_leaf_and_follows_it(copied, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    model, _ = jaxtune.load(copied, dtype="auto")
    assert model.dtype == jnp.float32  # the file's weights are
    file = copied / "model.safetensors"
    halves = {name: value.astype(jnp.bfloat16) for name, value in load_file(file).items()}
    mixed = "model.layers.2.mlp.up_proj.weight"
    wide = load_file(file)[mixed]
    save_file(halves | {mixed: wide}, file, metadata={"format": "pt"})
    model, variables = jaxtune.load(copied, dtype="auto")
    held = {path: leaf.dtype for path, leaf in tree.flatten(variables["params"]).items()}
    assert held.pop("layers/mlp/up/w") == jnp.float32
    assert set(held.values()) == {jnp.dtype("bfloat16")}
    np.testing.assert_array_equal(variables["params"]["layers"]["mlp"]["up"]["w"][2], wide.T)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dtype": "int8"}, "dtype 'int8': expected one of float32, bfloat16, float16 or auto"),
        (
            {"attention": "flash"},
            "attention 'flash': expected one of auto, plain, blockwise, splash, cudnn",
        ),
        ({"mesh": {"fsdp": 1}}, "mesh is a dict; expected a jax.sharding.Mesh: make one"),
        ({"rules": [(".*", None)]}, "rules were given without a mesh"),
        ({"mesh": ("model", "Auto")}, "mesh axis 'model' shards nothing: expected data, fsdp"),
        ({"mesh": ("fsdp", "Explicit")}, r"explicit axes.*jaxtune\.make_mesh"),
    ],
)
def test_arguments_that_cannot_be(pair, options, says):
    if isinstance(options.get("mesh"), tuple):
        name, kind = options["mesh"]
        types = (getattr(jax.sharding.AxisType, kind),)
        options = {"mesh": jax.make_mesh((1,), (name,), axis_types=types)}
    with pytest.raises(ValueError, match=says):
        jaxtune.load(pair(NAME).directory, **options)


def test_dtypes_may_be_given_as_types(pair):
    _, variables = jaxtune.load(pair(NAME).directory, dtype=jnp.bfloat16)
    assert variables["params"]["norm"]["scale"].dtype == jnp.bfloat16


@pytest.mark.slow
def test_big_tensors_are_converted_and_compared_in_blocks(pair, copied, monkeypatch):
    monkeypatch.setattr(placing, "BLOCK_BYTES", 1000)  # five rows of 48 float32
    _, variables = jaxtune.load(copied, dtype="bfloat16")
    want = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), pair(NAME).variables)
    jax.tree.map(np.testing.assert_array_equal, variables, want)
    embedding = load_file(copied / "model.safetensors")["model.embed_tokens.weight"]
    configure(copied, tie_word_embeddings=True)
    for row, tied in ((None, True), (200, False)):
        head = embedding.copy()
        if row:
            head[row, 5] += 1
        change(copied, lm_head__weight=head)
        assert jaxtune.load(copied)[0].config.tied == tied


def test_values_beyond_float16_are_refused(copied):
    wide = np.full((72, 48), 1e5, np.float32)
    change(copied, model__layers__2__mlp__up_proj__weight=wide)
    with pytest.raises(
        CheckpointError, match=r"layers.2.mlp.up_proj.weight has values up to 1e\+05"
    ):
        jaxtune.load(copied, dtype="float16")
    jaxtune.load(copied, dtype="bfloat16")


def test_the_origin_outlives_a_change_of_directory(pair, monkeypatch, tmp_path):
    monkeypatch.chdir(pair(NAME).directory.parent)
    model, variables = jaxtune.load(pair(NAME).directory.name)
    monkeypatch.chdir(tmp_path)
    jaxtune.save_merged(model, variables, tmp_path / "written")
    assert (tmp_path / "written" / "config.json").exists()


def test_loaded_arrays_do_not_live_in_the_file(pair, copied):
    _, variables = jaxtune.load(copied)
    with open(copied / "model.safetensors", "r+b") as file:
        file.write(bytes(os.path.getsize(copied / "model.safetensors")))
    expected = pair(NAME).variables
    jax.tree.map(np.testing.assert_array_equal, variables, expected)


MESHES = [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"tensor": 4, "data": -1}]


@pytest.mark.slow
def test_a_mesh_gets_every_leaf_on_its_sharding(pair):
    """In a process of its own, because the number of devices is fixed at the first use of JAX."""
    code = f"""
        import jax, numpy as np, jaxtune
        from jaxtune import sharding, tree
        directory = {str(pair("phi3-window").directory)!r}
        model, alone = jaxtune.load(directory)
        tokens = np.arange(32).reshape(4, 8)
        expected = jax.jit(model.apply)(alone, tokens)
        for axes in {MESHES}:
            mesh = sharding.make_mesh(axes)
            _, spread = jaxtune.load(directory, mesh=mesh)
            shapes = {{path: leaf.shape for path, leaf in tree.flatten(alone["params"]).items()}}
            wanted = sharding.shardings(shapes, mesh)
            for path, leaf in tree.flatten(spread["params"]).items():
                assert leaf.sharding == wanted[path], (path, leaf.sharding)
            parts = axes.get("fsdp", 1) * axes.get("tensor", 1)
            for path, leaf in tree.flatten(spread["params"]["layers"]).items():
                if path.endswith("/w"):
                    assert leaf.addressable_shards[0].data.nbytes * parts == leaf.nbytes, path
            jax.tree.map(np.testing.assert_array_equal, alone, jax.device_get(spread))
            np.testing.assert_allclose(jax.jit(model.apply)(spread, tokens), expected, atol=2e-5)
        print("agreed")
    """
    assert "agreed" in python(code, **devices.environment(8))


@pytest.mark.slow
def test_each_process_reads_only_what_its_devices_need(pair, tmp_path):
    """Two processes over loopback: each reads half of the matrices, and they write one file."""
    code = f"""
        import sys, jax, numpy as np
        rank, port = int(sys.argv[1]), sys.argv[2]
        jax.distributed.initialize(f"127.0.0.1:{{port}}", 2, rank)
        import jaxtune
        from jaxtune import sharding
        from jaxtune.checkpoint import load
        put, taken = jax.device_put, []
        jax.device_put = lambda x, *a, **k: taken.append(np.shape(x)) or put(x, *a, **k)
        mesh = sharding.make_mesh({{"fsdp": 2}})
        model, variables = jaxtune.load({str(pair("qwen3-wide-heads").directory)!r}, mesh=mesh)
        jax.device_put = put
        gate = [shape for shape in taken if sorted(shape) == [24, 72]]
        assert len(gate) == 9, taken  # gate, up and down of three layers: half the width each
        assert not [shape for shape in taken if sorted(shape) == [48, 72]]
        jaxtune.save_merged(model, variables, {str(tmp_path / "written")!r}, dtype="auto")
        print("done", rank)
    """
    port = str(free_port())
    processes = [start(code, str(rank), port) for rank in range(2)]
    said = [process.communicate(timeout=120) for process in processes]
    assert [out.split()[-2:] for out, _ in said] == [["done", "0"], ["done", "1"]], said
    expected = Safetensors.open(pair("qwen3-wide-heads").directory)
    written = Safetensors.open(tmp_path / "written")
    assert written.tensors.keys() == expected.tensors.keys()
    for name in expected.tensors:
        np.testing.assert_array_equal(written.read(name), expected.read(name))


def start(code: str, *arguments: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def python(code: str, **environment: str) -> str:
    process = start(code, **environment)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out


def test_missing_extra_and_misshapen_are_listed_at_once(copied):
    change(
        copied,
        model__layers__1__self_attn__q_proj__weight=None,
        model__layers__1__attention__q_proj__weight=np.zeros((48, 48), np.float32),
        model__norm__weight=np.zeros(47, np.float32),
    )
    with pytest.raises(CheckpointError) as error:
        jaxtune.load(copied)
    message = str(error.value)
    assert "1 missing, 1 unknown, 1 with a wrong shape" in message
    near = "model.layers.1.attention.q_proj.weight"
    assert f"missing  model.layers.1.self_attn.q_proj.weight (48, 48)  (nearest: {near})" in message
    assert "unknown  model.layers.1.attention.q_proj.weight" in message
    assert "model.norm.weight is (47,), the config expects (48,)" in message
    assert str(copied) in message


def test_a_config_of_another_size_is_cut_short(copied):
    configure(copied, num_hidden_layers=40)
    with pytest.raises(
        CheckpointError, match=r"(?s)333 missing.*… and 325 more like these"
    ) as error:
        jaxtune.load(copied)
    assert len(str(error.value).splitlines()) == 10


def test_a_tied_config_whose_file_holds_an_equal_head(copied):
    embedding = load_file(copied / "model.safetensors")["model.embed_tokens.weight"]
    change(copied, lm_head__weight=embedding)
    configure(copied, tie_word_embeddings=True)
    model, variables = jaxtune.load(copied)
    assert model.config.tied
    assert "head" not in variables["params"]


@pytest.mark.slow
def test_a_tied_config_whose_file_holds_another_head(copied):
    """The tensors are believed, as in transformers."""
    configure(copied, tie_word_embeddings=True)
    live = reference.AutoModelForCausalLM.from_pretrained(copied)
    model, variables = jaxtune.load(copied)
    assert not model.config.tied
    tokens = reference.tokens(reference.CASES[NAME])
    got = np.asarray(model.apply(variables, tokens))
    np.testing.assert_allclose(got, reference.logits(live, tokens), atol=1e-4)
    jaxtune.save_merged(model, variables, copied.parent / "written", dtype="auto")
    written = json.loads((copied.parent / "written" / "config.json").read_text())
    assert written["tie_word_embeddings"] is False


def test_leftover_rotary_tables_are_known(copied):
    change(copied, model__layers__0__self_attn__rotary_emb__inv_freq=np.zeros(6, np.float32))
    assert jaxtune.load(copied)[0].config.tied is False


def test_packed_weights_are_refused(copied):
    change(copied, model__layers__0__mlp__up_proj__weight=np.zeros((72, 48), np.int8))
    with pytest.raises(CheckpointError, match=r"found int8 in .*mlp.up_proj.weight$"):
        jaxtune.load(copied)
    for given, named in (({"quant_method": "gptq"}, "gptq"), ("fp8", "fp8")):
        configure(copied, quantization_config=given)
        with pytest.raises(CheckpointError, match=rf"stored quantised \('{named}', according"):
            jaxtune.load(copied)


def test_pickles_and_half_a_file(copied):
    file = copied / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        jaxtune.load(copied)
    file.unlink()
    (copied / "pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="pickle"):
        jaxtune.load(copied)


@pytest.mark.parametrize("source", ["~nosuchuser/x", "x" * 5000, "a\0b", "/dev/null", ""])
def test_odd_places(source):
    with pytest.raises(CheckpointError, match=r"no such directory|is a file"):
        jaxtune.load(source)


def test_no_such_place(tmp_path):
    with pytest.raises(CheckpointError, match="no such directory"):
        jaxtune.load(tmp_path / "nowhere")
    with pytest.raises(FamilyError, match=r"has no config\.json"):
        jaxtune.load(tmp_path)


def test_a_layer_is_all_the_host_holds(pair, monkeypatch):
    """Every array that passes through the host is one layer of one leaf at most."""
    made = pair("gemma2-windows")
    seen = []
    put = jax.device_put
    monkeypatch.setattr(jax, "device_put", lambda x, *a, **k: seen.append(x) or put(x, *a, **k))
    loading.load(made.directory)
    shapes = {path: leaf.shape for path, leaf in tree.flatten(made.variables["params"]).items()}
    layers = {shape[1:] if path.startswith("layers/") else shape for path, shape in shapes.items()}
    assert {np.shape(each) for each in seen} <= layers
    assert len(seen) == sum(
        shape[0] if path.startswith("layers/") else 1 for path, shape in shapes.items()
    )
