"""What is written, against live PEFT: it computes our logits from it."""

import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peft import AutoPeftModelForCausalLM
from safetensors.numpy import load_file

import jaxtune
from jaxtune import tree
from jaxtune.checkpoint.formats.safetensors import CheckpointError, Safetensors
from jaxtune.checkpoint.peft import adapter_config
from tests import reference
from tests.checkpoint.peft.adapters import (
    FUSED,
    NEAR,
    PLAIN,
    TOWER,
    WEIGHTS,
    adapted,
    adapters,
    begun,
    busy,
    check_out,
    check_same,
    config,
    error,
    read_by_peft,
)
from tests.checkpoint.test_load import start
from tests.marks import slow_after
from tests.processes import free_port


@pytest.mark.parametrize(
    "name, variant",
    slow_after(
        2,
        [
            (FUSED, "dora"),
            (TOWER, "lora"),
            *((name, "lora") for name in ("gemma-mqa", "gemma2-windows", "gemma3-seven-layers")),
            *((name, "lora") for name in ("llama-mqa-tied-biased", "mistral-window", "qwen2-yarn")),
            *((name, "lora") for name in ("qwen3-mqa-biased", "phi4-mini-longrope-long", FUSED)),
            *((PLAIN, "rslora"), (PLAIN, "dora"), (FUSED, "rslora")),
        ],
    ),
)
def test_peft_computes_our_logits(pair, name, variant, tmp_path, record_property):
    made = pair(name)
    variables = adapted(made, variant=variant, dropout=0.1)
    directory = jaxtune.save_adapter(
        variables, tmp_path / "out", made.directory, rslora=variant == "rslora"
    )
    assert sorted(os.listdir(directory)) == [adapter_config.CONFIG_NAME, WEIGHTS]
    check_out(made, variables, directory, record_property)
    check_same(jaxtune.load_adapter(made.model, made.variables, directory), variables)


@pytest.mark.parametrize(
    "name, variant, targets",
    slow_after(
        1,
        [
            (FUSED, "dora", ["layers/attn/k/w", "layers/mlp/down/w"]),
            (FUSED, "lora", ["layers/attn/[qv]/w", "layers/mlp/up/w"]),
            (TOWER, "lora", ["layers/mlp/down/w"]),  # a name that the vision tower has not
            ("llama-linear", "dora", ["head/w", "layers/mlp/down/w"]),
        ],
    ),
)
def test_some_targets(pair, name, variant, targets, tmp_path):
    made = pair(name)
    variables = adapted(made, variant=variant, targets=targets)
    directory = jaxtune.save_adapter(variables, tmp_path / "out", made.directory)
    check_out(made, variables, directory)
    check_same(jaxtune.load_adapter(made.model, made.variables, directory), variables)


@pytest.mark.parametrize("name", slow_after(1, [FUSED, PLAIN]))
def test_ranks_and_scales_of_their_own(pair, name, tmp_path):
    """One rank a leaf and one scale a layer, as a loaded adapter may have them."""
    made = pair(name)
    variables = adapted(made)
    leaves = adapters(variables)
    for number, (path, leaf) in enumerate(leaves.items()):
        rank = 1 + number % 3
        scale = np.float32([1.5, 0.3, 1.5]) * (number % 2 + 1)
        leaves[path] = leaf.replace(a=leaf.a[..., :rank], b=leaf.b[:, :rank], scale=scale)
    variables = {**variables, "lora": tree.unflatten(leaves)}
    directory = jaxtune.save_adapter(variables, tmp_path / "out", made.directory)
    check_out(made, variables, directory)
    again = jaxtune.load_adapter(made.model, made.variables, directory)
    tokens = reference.tokens(made.case)
    np.testing.assert_allclose(
        made.apply(again, tokens),
        made.apply(variables, tokens),
        atol=NEAR,  # where fused parts differ in scale, b takes up the difference
    )


@pytest.mark.slow
@pytest.mark.parametrize("name, variant", [(PLAIN, "lora"), (PLAIN, "dora"), (FUSED, "rslora")])
def test_pissa_becomes_the_difference(pair, name, variant, tmp_path):
    made = pair(name)
    initial = begun(made, rank=3, init="pissa", variant=variant)
    variables = busy(initial)
    with pytest.raises(CheckpointError, match=r"is not .*\.weight of .*pissa.*as `initial`"):
        jaxtune.save_adapter(variables, tmp_path / "out", made.directory)
    assert list(tmp_path.iterdir()) == []
    directory = jaxtune.save_adapter(variables, tmp_path / "out", made.directory, initial=initial)
    assert config(directory)["r"] == 6
    check_out(made, variables, directory)
    again = jaxtune.load_adapter(made.model, made.variables, directory)
    tokens = reference.tokens(made.case)
    want = np.asarray(made.apply(variables, tokens))
    assert error(made.apply(again, tokens), want) < NEAR


@pytest.mark.slow
def test_another_start_is_refused(pair, tmp_path):
    made = pair(PLAIN)
    started = begun(made, rank=3, init="pissa")
    twice = jax.tree.map(lambda leaf: 2 * leaf, started["lora"])
    some = {"layers": {"mlp": started["lora"]["layers"]["mlp"]}}
    for initial, says in (
        (
            begun(made, rank=2, alpha=4, init="pissa"),
            "minus the product of the adapters in `initial`",
        ),
        ({"lora": twice}, "with the same scales"),
        ({"lora": some}, "(?s)same adapters.*layers/attn/q/w"),
        (made.variables, "no adapters in `initial`"),
    ):
        with pytest.raises(CheckpointError, match=says):
            jaxtune.save_adapter(busy(started), tmp_path / "out", made.directory, initial=initial)
    assert list(tmp_path.iterdir()) == []


def test_the_config_says_what_was_configured(pair, tmp_path):
    made = pair(FUSED)
    variables = adapted(made, rank=12, alpha=16, variant="rslora", dropout=0.05)
    for number, (base, rslora, wanted) in enumerate(
        (
            ("owner/name@v2.1", True, ("owner/name", "v2.1", 16)),
            ("owner/name", False, ("owner/name", None, 16 * math.sqrt(12))),
            (None, True, (str(made.directory), None, 16)),
        )
    ):
        directory = jaxtune.save_adapter(
            variables, tmp_path / str(number), made.directory, name=base, rslora=rslora
        )
        said = config(directory)
        assert (said["base_model_name_or_path"], said["revision"]) == wanted[:2]
        assert said["lora_alpha"] == pytest.approx(wanted[2], rel=1e-7)
        assert said["use_rslora"] is rslora
        assert (said["r"], said["lora_dropout"]) == (12, 0.05)
        assert said["rank_pattern"] == {"qkv_proj": 36, "gate_up_proj": 24}
        assert said["target_modules"] == ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"]


def test_the_base_s_name_is_enough_for_peft(pair, tmp_path):
    made = pair(PLAIN)
    directory = jaxtune.save_adapter(adapted(made), tmp_path / "out", made.directory)
    tokens = reference.tokens(made.case)
    want = reference.logits(read_by_peft(made, directory), tokens)
    found = AutoPeftModelForCausalLM.from_pretrained(directory, attn_implementation="eager")
    np.testing.assert_array_equal(reference.logits(found, tokens), want)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtypes(pair, dtype, tmp_path):
    made = pair(FUSED)
    variables = adapted(made, variant="dora")
    directory = jaxtune.save_adapter(variables, tmp_path / "out", made.directory, dtype=dtype)
    stored = Safetensors.open(directory / WEIGHTS)
    assert {info.dtype for info in stored.tensors.values()} == {jnp.dtype(dtype)}
    again = jaxtune.load_adapter(made.model, made.variables, directory)
    rounded = lambda leaf: leaf.astype(dtype).astype(jnp.float32)  # noqa: E731
    for path, leaf in tree.flatten(again["lora"]).items():
        ours = tree.flatten(variables["lora"])[path]
        kept = path.endswith(("scale", "dropout"))
        np.testing.assert_array_equal(leaf, ours if kept else rounded(ours))


def test_nothing_is_overwritten_unasked(pair, tmp_path):
    made = pair("llama-linear")
    variables, out = adapted(made), tmp_path / "out"
    jaxtune.save_adapter(variables, out, made.directory)
    (out / "README.md").write_text("as PEFT writes one")
    with pytest.raises(CheckpointError, match=r"already exists .* overwrite=True"):
        jaxtune.save_adapter(variables, out, made.directory)
    jaxtune.save_adapter(variables, out, made.directory, overwrite=True)
    assert sorted(os.listdir(out)) == [adapter_config.CONFIG_NAME, WEIGHTS]
    before = sorted(os.listdir(made.directory))
    with pytest.raises(CheckpointError, match=r"it has no adapter_config.json, only"):
        jaxtune.save_adapter(variables, made.directory, made.directory, overwrite=True)
    assert sorted(os.listdir(made.directory)) == before


def test_what_is_not_written(pair, tmp_path):
    made = pair("llama-linear")
    variables = adapted(made)
    tuned = jax.tree.map(lambda leaf: leaf * 1.02, made.variables["params"])
    embedded = made.variables["params"] | {"embed": {"w": -made.variables["params"]["embed"]["w"]}}
    other = pair("mistral-mqa").directory
    lora, mixed, path = variables["lora"], adapters(variables), "layers/attn/q/w"
    mixed[path] = mixed[path].replace(magnitude=np.ones(48))
    for given, base, says in (
        (made.variables, made.directory, "no adapters in the variables: .*save_merged"),
        ({"lora": lora}, made.directory, "the variables have no 'params' \\(found lora\\)"),
        (variables | {"params": tuned}, made.directory, "If weights were trained too, write them"),
        (
            variables | {"params": embedded},
            made.directory,
            "not the weights of .*: embed/w differs by 2 of its norm. If weights were trained too",
        ),
        (
            variables,
            other,
            r"layers/attn/k/w: a \(3, 48, 4\) .*, but the base has a weight of shape \(3, 48, 12",
        ),
        (variables | {"lora": {"embed": {"w": mixed[path]}}}, made.directory, "no such linear map"),
        (variables | {"lora": tree.unflatten(mixed)}, made.directory, "PEFT needs all or none"),
        (variables, tmp_path / "nothing", "no such directory or file"),
    ):
        with pytest.raises(CheckpointError, match=says):
            jaxtune.save_adapter(given, tmp_path / "out", base)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_processes_write_together(pair, tmp_path):
    """Two over loopback, each with half of every leaf; one that hung would run into the timeout."""
    made = pair(FUSED)
    variables = adapted(made, variant="dora", targets=["layers/attn/[qv]/w", "layers/mlp/.*/w"])
    alone = jaxtune.save_adapter(variables, tmp_path / "alone", made.directory)
    code = f"""
        import sys, jax
        rank, port = int(sys.argv[1]), sys.argv[2]
        jax.distributed.initialize(f"127.0.0.1:{{port}}", 2, rank)
        from jax.sharding import NamedSharding, PartitionSpec
        import jaxtune
        mesh = jaxtune.make_mesh({{"fsdp": 2}})
        model, variables = jaxtune.load({str(made.directory)!r}, mesh=mesh)
        variables = jaxtune.load_adapter(model, variables, {str(alone)!r})
        def halved(leaf):
            spec = PartitionSpec(None, "fsdp") if leaf.ndim > 1 else PartitionSpec()
            return jax.device_put(leaf, NamedSharding(mesh, spec))
        variables["lora"] = jax.tree.map(halved, variables["lora"])
        for base in ({str(made.directory)!r}, "nowhere/at/all"):
            try:
                print("wrote:", jaxtune.save_adapter(variables, {str(tmp_path / "out")!r}, base))
            except jaxtune.checkpoint.formats.tensors.CheckpointError as error:
                print("refused:", error)
    """
    port = str(free_port())
    processes = [start(code, str(rank), port) for rank in range(2)]
    try:
        said = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for out, _ in said:
        lines = [line for line in out.splitlines() if line.startswith(("wrote", "refused"))]
        assert lines[0] == f"wrote: {tmp_path / 'out'}", said
        assert lines[1].startswith("refused: 'nowhere/at/all'")
    assert config(tmp_path / "out") == config(alone) | {
        "base_model_name_or_path": str(made.directory)
    }
    together, want = (load_file(each / WEIGHTS) for each in (tmp_path / "out", alone))
    assert together.keys() == want.keys()
    for name in want:
        # The magnitudes beside k are norms of k, which devices sum in another order.
        np.testing.assert_allclose(together[name], want[name], rtol=1e-6)
