"""Adapters out and in, against live PEFT: what it reads of ours, and what we read of its."""

import json
import math
import os
import re
import shutil
import warnings
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

import jaxtune
from jaxtune import tree
from jaxtune.adapters.lora import Lora, add_lora
from jaxtune.checkpoint import hub
from jaxtune.checkpoint.formats.safetensors import CheckpointError, Safetensors
from jaxtune.checkpoint.peft import adapter_config, stacking
from tests import reference
from tests.checkpoint.test_load import free_port, start
from tests.marks import slow_after

PLAIN, FUSED, TOWER = "gemma3-linear-mqa", "phi3-window", "gemma3-tower"
# Both sides multiply in float32, in another order; the bound that was promised is twice this.
NEAR = 5e-5
WEIGHTS = "adapter_model.safetensors"


def is_lora(node) -> bool:
    return isinstance(node, Lora)


def adapters(variables) -> dict[str, Lora]:
    return tree.flatten(variables["lora"], is_leaf=is_lora)


def busy(variables):
    """The same adapters, with numbers in every `b` and magnitudes off their start."""

    def fill(path, adapter):
        random = np.random.default_rng(zlib.crc32(path.encode()))
        b = adapter.b + 0.1 * random.standard_normal(adapter.b.shape, np.float32)
        if adapter.magnitude is None:
            return adapter.replace(b=b)
        factor = np.exp(0.3 * random.standard_normal(adapter.magnitude.shape, np.float32))
        return adapter.replace(b=b, magnitude=adapter.magnitude * factor)

    return {**variables, "lora": tree.map_with_path(fill, variables["lora"], is_leaf=is_lora)}


def begun(made, **options):
    """What `add_lora` makes of a pair's variables, compiled as one."""
    targets = [r"layers/attn/[qv]/w", r"layers/mlp/up/w"]
    options = dict(rank=4, alpha=6, targets=targets, key=jax.random.key(1)) | options
    variables = jax.jit(lambda variables: add_lora(variables, **options))(made.variables)
    return jax.tree.map(np.asarray, variables)


def adapted(made, variables=None, *, rank=4, alpha=6, variant="lora", dropout=0.0, targets=None):
    """Busy adapters beside the weights of a pair, or others of their shapes; compiles nothing."""
    variables = made.variables if variables is None else variables
    shapes = jax.eval_shape(
        lambda: add_lora(
            made.variables,
            rank=rank,
            variant=variant,
            key=jax.random.key(0),
            targets=targets or "all-linear",
        )["lora"]
    )
    params = tree.flatten(variables["params"])
    random = np.random.default_rng(1)

    def fill(path, shaped):
        *layers, inside, _ = shaped.a.shape
        norms = np.linalg.norm(np.asarray(params[path], np.float32), axis=-2)
        return Lora(
            a=random.uniform(-1, 1, shaped.a.shape).astype(np.float32) * inside**-0.5,
            b=np.zeros(shaped.b.shape, np.float32),
            scale=np.full(layers, alpha / (rank**0.5 if variant == "rslora" else rank), np.float32),
            dropout=np.full(layers, dropout, np.float32),
            magnitude=norms if variant == "dora" else None,
        )

    return busy({**variables, "lora": tree.map_with_path(fill, shapes, is_leaf=is_lora)})


def live(made):
    """The base as its checkpoint gives it to anyone."""
    return AutoModelForCausalLM.from_pretrained(made.directory, attn_implementation="eager")


def read_by_peft(made, directory):
    """PEFT's model with the adapter of a directory, which must have all keys that it looks for."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        twin = PeftModel.from_pretrained(live(made), directory).eval()
    assert not [str(each.message) for each in caught if "keys" in str(each.message)]
    return twin


def config(directory) -> dict:
    return json.loads((directory / adapter_config.CONFIG_NAME).read_text())


def error(got, want) -> float:
    return float(np.abs(np.asarray(got) - want).max() / want.std())


def check_out(made, variables, directory, record_property=lambda *_: None) -> None:
    """PEFT computes our logits from the directory, and the adapter matters."""
    tokens = reference.tokens(made.case)
    want = reference.logits(read_by_peft(made, directory), tokens)
    assert error(reference.logits(made.reference, tokens), want) > 0.1
    reached = error(made.apply(variables, tokens), want)
    record_property("error", reached)
    assert reached < NEAR


def check_same(one, other) -> None:
    """The same adapters, bit for bit."""
    assert jax.tree.structure(one["lora"]) == jax.tree.structure(other["lora"])
    jax.tree.map(np.testing.assert_array_equal, one["lora"], other["lora"])


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
        (begun(made, rank=2, alpha=4, init="pissa"), "less what the adapters of `initial` took"),
        ({"lora": twice}, "with the same scales"),
        ({"lora": some}, "(?s)same adapters.*layers/attn/q/w"),
        (made.variables, "`initial` hold no adapters"),
    ):
        with pytest.raises(CheckpointError, match=says):
            jaxtune.save_adapter(busy(started), tmp_path / "out", made.directory, initial=initial)
    assert list(tmp_path.iterdir()) == []


def randomised(twin):
    """A PEFT model as if trained: numbers in every B, magnitudes off their start."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in twin.named_parameters():
            if "lora_B" in name and "vision" not in name:
                weight += 0.1 * torch.randn(weight.shape, generator=generator)
            if "magnitude" in name:
                weight *= torch.exp(0.3 * torch.randn(weight.shape, generator=generator))
    return twin.eval()


def written_by_peft(made, directory, **options):
    """A random adapter that PEFT made and wrote; returns PEFT's model."""
    options = dict(r=4, lora_alpha=6, target_modules="all-linear", lora_dropout=0.1) | options
    twin = randomised(get_peft_model(live(made), LoraConfig(task_type="CAUSAL_LM", **options)))
    twin.save_pretrained(directory, save_embedding_layers=False)
    return twin


@pytest.mark.parametrize(
    "name, options",
    slow_after(
        2,
        [
            (FUSED, dict(use_dora=True, target_modules=["qkv_proj"])),
            (
                PLAIN,
                dict(
                    use_rslora=True, r=3, rank_pattern={"q_proj": 2, r"layers\.1\.mlp.up_proj": 7}
                ),
            ),
            (PLAIN, {}),
            (
                PLAIN,
                dict(
                    use_dora=True, layers_to_transform=[0, 2], target_modules=["q_proj", "up_proj"]
                ),
            ),
            (
                PLAIN,
                dict(
                    alpha_pattern={r".*\.[02]\..*o_proj": 2, "k_proj": 11},
                    exclude_modules=["v_proj", "model.layers.0.mlp.up_proj"],
                ),
            ),
            (PLAIN, dict(target_modules=r".*\.1\..*(k|down)_proj", rank_pattern={"k_proj": 1})),
            (
                PLAIN,
                dict(
                    layers_to_transform=1,
                    layers_pattern="layers",
                    target_modules=["gate_proj", "o_proj"],
                ),
            ),
            ("llama-linear", dict(target_modules=["lm_head", "k_proj"])),
            (FUSED, {}),
            (FUSED, dict(layers_to_transform=[1], target_modules=["gate_up_proj", "o_proj"])),
            (TOWER, {}),  # the vision tower's, which text leaves at zero, are left out
        ],
    ),
)
def test_we_compute_peft_s_logits(pair, name, options, tmp_path, record_property):
    made = pair(name)
    tokens = reference.tokens(made.case)
    want = reference.logits(written_by_peft(made, tmp_path / "theirs", **options), tokens)
    assert error(reference.logits(made.reference, tokens), want) > 0.1
    variables = jaxtune.load_adapter(made.model, made.variables, tmp_path / "theirs")
    reached = error(made.apply(variables, tokens), want)
    record_property("error", reached)
    assert reached < NEAR
    leaf = next(iter(adapters(variables).values()))
    assert leaf.a.dtype == leaf.b.dtype == jnp.float32
    np.testing.assert_array_equal(leaf.dropout, jnp.full(leaf.dropout.shape, 0.1))
    ours = jaxtune.save_adapter(variables, tmp_path / "ours", made.directory)
    assert error(reference.logits(read_by_peft(made, ours), tokens), want) < NEAR


@pytest.mark.slow
def test_peft_s_converted_pissa(pair, tmp_path):
    made = pair(PLAIN)
    options = LoraConfig(
        r=3, lora_alpha=6, init_lora_weights="pissa", target_modules="all-linear", use_rslora=True
    )
    twin = get_peft_model(live(made), options)
    twin.peft_config["default"].init_lora_weights = True
    twin.save_pretrained(tmp_path / "initial")
    twin.peft_config["default"].init_lora_weights = "pissa"
    tokens = reference.tokens(made.case)
    want = reference.logits(randomised(twin), tokens)
    twin.save_pretrained(tmp_path / "raw")
    with pytest.raises(CheckpointError, match=r"init_lora_weights is 'pissa'.*Convert it"):
        jaxtune.load_adapter(made.model, made.variables, tmp_path / "raw")
    twin.save_pretrained(
        tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "initial")
    )
    variables = jaxtune.load_adapter(made.model, made.variables, tmp_path / "plain")
    assert error(made.apply(variables, tokens), want) < NEAR


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


def test_names_of_an_older_transformers(pair, tmp_path):
    made = pair(TOWER)
    variables = adapted(made, targets=["layers/mlp/.*/w"])
    directory = jaxtune.save_adapter(variables, tmp_path / "out", made.directory)
    tensors = load_file(directory / WEIGHTS)
    new, old = "model.model.language_model.", "model.language_model.model."
    renamed = {name.replace(new, old): tensor for name, tensor in tensors.items()}
    assert renamed.keys() != tensors.keys()
    save_file(renamed, directory / WEIGHTS)
    check_same(jaxtune.load_adapter(made.model, made.variables, directory), variables)


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


@pytest.mark.slow
def test_blocks_that_were_trained_on_stay_joined(pair, tmp_path):
    """What we noted of a fused module's ranks holds only while its B still has the blocks."""
    made = pair(FUSED)
    variables = adapted(made)
    directory = jaxtune.save_adapter(variables, tmp_path / "out", made.directory)
    tensors = load_file(directory / WEIGHTS)
    changed = {name: x + 0.05 if "lora_B" in name else x for name, x in tensors.items()}
    with Safetensors.open(directory / WEIGHTS) as stored:
        assert json.loads(stored.metadata[stacking.RANKS])["layers/attn/q/w"] == 4
        save_file(changed, directory / "changed", metadata=dict(stored.metadata))
    (directory / "changed").replace(directory / WEIGHTS)
    again = jaxtune.load_adapter(made.model, made.variables, directory)
    assert again["lora"]["layers"]["attn"]["q"]["w"].a.shape[-1] == 12
    check_out(made, again, directory)


def test_adapters_lie_where_their_weights_do(pair, tmp_path):
    made = pair(PLAIN)
    directory = jaxtune.save_adapter(adapted(made), tmp_path / "out", made.directory)
    mesh = jaxtune.make_mesh({"fsdp": -1})
    model, variables = jaxtune.load(made.directory, mesh=mesh)
    variables = jaxtune.load_adapter(model, variables, directory)
    assert {leaf.sharding.mesh for leaf in jax.tree.leaves(variables)} == {mesh}


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
    with pytest.raises(CheckpointError, match=r"it has no adapter_config.json, but"):
        jaxtune.save_adapter(variables, made.directory, made.directory, overwrite=True)
    assert sorted(os.listdir(made.directory)) == before


def test_what_is_not_written(pair, tmp_path):
    made = pair("llama-linear")
    variables = adapted(made)
    tuned = jax.tree.map(lambda leaf: leaf * 1.02, made.variables["params"])
    other = pair("mistral-mqa").directory
    lora, mixed, path = variables["lora"], adapters(variables), "layers/attn/q/w"
    mixed[path] = mixed[path].replace(magnitude=np.ones(48))
    for given, base, says in (
        (made.variables, made.directory, "the variables hold no adapters: .*save_merged"),
        ({"lora": lora}, made.directory, "the variables hold lora, and no 'params'"),
        (variables | {"params": tuned}, made.directory, "If weights were trained too, write them"),
        (
            variables,
            other,
            r"layers/attn/k/w: a \(3, 48, 4\) .*, the base has a weight \(3, 48, 12",
        ),
        (variables | {"lora": {"embed": {"w": mixed[path]}}}, made.directory, "no such linear map"),
        (variables | {"lora": tree.unflatten(mixed)}, made.directory, "PEFT has all or none"),
        (variables, tmp_path / "nothing", "no such directory or file"),
    ):
        with pytest.raises(CheckpointError, match=says):
            jaxtune.save_adapter(given, tmp_path / "out", base)
    assert list(tmp_path.iterdir()) == []


def test_a_base_of_which_the_config_is_left(pair, tmp_path):
    made = pair("llama-linear")
    (tmp_path / "base").mkdir()
    shutil.copy(made.directory / "config.json", tmp_path / "base")
    variables = adapted(made)
    directory = jaxtune.save_adapter(variables, tmp_path / "out", tmp_path / "base")
    check_same(jaxtune.load_adapter(made.model, made.variables, directory), variables)


@pytest.mark.parametrize("dtype", slow_after(1, ["bfloat16", "float16"]))
def test_a_base_held_in_another_dtype_is_that_base(pair, dtype, tmp_path):
    made = pair(PLAIN)
    model, plain = jaxtune.load(made.directory, dtype=dtype)
    variables = adapted(made, plain)
    directory = jaxtune.save_adapter(variables, tmp_path / "out", made.directory)
    check_same(jaxtune.load_adapter(model, plain, directory), variables)


@pytest.fixture
def directory(pair, tmp_path):
    """An adapter of one's own for `llama-linear`, to damage."""
    return jaxtune.save_adapter(
        adapted(made := pair("llama-linear")), tmp_path / "a", made.directory
    )


def attach(made, directory):
    return jaxtune.load_adapter(made.model, made.variables, directory)


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3': LORA is the one"),
        ({"bias": "all"}, "bias is 'all': an adapter that leaves biases alone"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\]"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is"),
        ({"init_lora_weights": "olora"}, "init_lora_weights is 'olora'.*path_initial_model"),
        ({"r": 5}, r"q_proj: lora_A.weight has shape \[4, 48\], the config's rank is 5"),
        ({"r": "4"}, "r is '4': a whole number from 1"),
        ({"rank_pattern": {"v_proj": 2}}, r"v_proj: lora_B.weight has shape \[24, 4\].*rank is 2"),
        ({"alpha_pattern": {"(": 2}}, r"'\(.*' is no regular expression"),
        ({"target_modules": ["q_proj"]}, "up_proj: it is there, and target_modules"),
        ({"target_modules": 7}, "target_modules is 7: a name, a list of names"),
        ({"lora_dropout": 1}, "lora_dropout is 1: a share from 0 to below 1"),
        ({"use_dora": True}, "q_proj: lora_magnitude_vector is missing"),
    ],
)
def test_configs_we_cannot_follow(pair, directory, changes, says):
    file = directory / adapter_config.CONFIG_NAME
    file.write_text(json.dumps(config(directory) | changes))
    with pytest.raises(CheckpointError, match=says):
        attach(pair("llama-linear"), directory)


STEM = "base_model.model.model.layers.1.mlp.up_proj"


@pytest.mark.parametrize(
    "changes, says",
    [
        ({f"{STEM}.lora_A.weight": None}, "layers.1.mlp.up_proj: lora_A.weight is missing"),
        (
            {f"{STEM}.lora_A.weight": None, f"{STEM}.lora_B.weight": None},
            "missing  model.layers.1.mlp.up_proj: the config's target_modules promise it",
        ),
        (
            {f"{STEM}.lora_B.weight": np.ones((71, 4), np.float32)},
            "up_proj: lora_B.weight has 71, the model 72",
        ),
        ({f"{STEM}.lora_B.weight": np.ones((72, 4), np.int8)}, "int8.*no part of LoRA"),
        ({f"{STEM}.lora_B.bias": np.ones(72)}, "lora_B.bias .*no part of LoRA"),
        (
            {"base_model.model.lm_head.base_layer.weight": np.ones((211, 48))},
            "a whole weight.*save_embedding_layers=False",
        ),
        ({f"{STEM}.lora_magnitude_vector": np.ones(72)}, "is there, and use_dora is false"),
        (
            {f"{STEM.replace('.1.', '.3.')}.lora_{part}.weight": np.ones(shape) for part, shape in
             (("A", (4, 48)), ("B", (72, 4)))},
            r"unknown  model.layers.3.mlp.up_proj: .*\(nearest: model.layers.\d.mlp.up_proj\)",
        ),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit(pair, directory, changes, says):
    tensors = load_file(directory / WEIGHTS) | changes
    save_file({name: x for name, x in tensors.items() if x is not None}, directory / WEIGHTS)
    with pytest.raises(CheckpointError, match=says):
        attach(pair("llama-linear"), directory)


def test_adapters_of_other_models(pair, directory, tmp_path):
    with pytest.raises(
        CheckpointError, match=r"unknown  model.layers.0.*q_proj.*nearest.*qkv_proj"
    ):
        attach(pair(FUSED), directory)
    with pytest.raises(CheckpointError, match=r"k_proj: lora_B.weight has 24, the model 12"):
        attach(pair("mistral-mqa"), directory)
    written_by_peft(pair(TOWER), tmp_path / "tower")
    tensors = load_file(tmp_path / "tower" / WEIGHTS)
    vision = next(name for name in tensors if "vision" in name and "lora_B" in name)
    save_file(tensors | {vision: tensors[vision] + 1}, tmp_path / "tower" / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"unknown  .*vision_tower"):
        attach(pair(TOWER), tmp_path / "tower")


@pytest.fixture
def other(pair, tmp_path):
    """`other(0.01)`: llama-linear's checkpoint, with each number changed by such a share."""
    made = pair("llama-linear")

    def make(share: float):
        random = np.random.default_rng(0)
        changed = {
            name: (x * (1 + share * random.standard_normal(x.shape))).astype(x.dtype)
            for name, x in load_file(made.directory / "model.safetensors").items()
        }
        (tmp_path / "other").mkdir()
        save_file(changed, tmp_path / "other" / "model.safetensors")
        shutil.copy(made.directory / "config.json", tmp_path / "other")
        return jaxtune.load(tmp_path / "other")

    return make


def test_another_base_of_the_same_shapes(pair, other, directory):
    model, variables = other(0.01)
    with pytest.raises(CheckpointError) as refused:
        jaxtune.load_adapter(model, variables, directory)
    message = str(refused.value)
    assert str(pair("llama-linear").directory) in message and str(model.origin) in message
    apart = re.search(r"another base .* is (\S+) of its size away", message)[1]
    assert float(apart) == pytest.approx(0.01, rel=0.2)
    attached = jaxtune.load_adapter(model, variables, directory, any_base=True)
    check_same(attached, attach(pair("llama-linear"), directory))


def test_a_base_that_was_rounded_is_the_same(pair, other, directory):
    model, variables = other(2**-9)
    attached = jaxtune.load_adapter(model, variables, directory)
    check_same(attached, attach(pair("llama-linear"), directory))


@pytest.mark.slow
def test_codes_are_told_by_what_they_were_made_from(pair, other, directory):
    made, (model, _) = pair("llama-linear"), other(0.01)
    _, same = jaxtune.load(made.directory, quant="nf4")
    _, variables = jaxtune.load(model.origin, quant="nf4")
    jaxtune.load_adapter(made.model, same, directory)
    with pytest.raises(CheckpointError, match="another base"):
        jaxtune.load_adapter(model, variables, directory)


def test_a_note_that_is_none_of_ours(pair, directory):
    save_file(load_file(directory / WEIGHTS), directory / WEIGHTS, {"jaxtune_base": "llama"})
    with pytest.raises(CheckpointError, match="jaxtune_base that jaxtune did not write: 'llama'"):
        attach(pair("llama-linear"), directory)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["dora", "lora"])
def test_an_adapter_that_does_nothing(pair, variant, tmp_path):
    made = pair("llama-linear")
    fresh = begun(made, variant=variant)
    directory = jaxtune.save_adapter(fresh, tmp_path / "out", made.directory)
    with pytest.raises(CheckpointError, match="every lora_B is zero"):
        attach(made, directory)
    if variant == "dora":
        leaves = adapters(fresh)
        leaf = leaves["layers/attn/q/w"]
        leaves["layers/attn/q/w"] = leaf.replace(magnitude=2 * leaf.magnitude)
        louder = {**fresh, "lora": tree.unflatten(leaves)}
        jaxtune.save_adapter(louder, directory, made.directory, overwrite=True)
        check_same(attach(made, directory), louder)


def test_files_we_do_not_read(pair, directory, tmp_path):
    made = pair("llama-linear")
    with pytest.raises(CheckpointError, match="the variables hold adapters already: merge"):
        jaxtune.load_adapter(made.model, adapted(made), directory)
    with pytest.raises(CheckpointError, match=r"no adapter_config.json, but a config.json: .*load"):
        attach(made, made.directory)
    with pytest.raises(CheckpointError, match=r"no adapter_config.json: an adapter's directory"):
        attach(made, tmp_path)
    with pytest.raises(CheckpointError, match="origin is not set"):
        jaxtune.load_adapter(made.model.clone(origin=None), made.variables, directory)
    whole = (directory / WEIGHTS).read_bytes()
    (directory / WEIGHTS).write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match="is truncated"):
        attach(made, directory)
    (directory / WEIGHTS).rename(directory / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="only as pickle"):
        attach(made, directory)
    (directory / adapter_config.CONFIG_NAME).write_text("{")
    with pytest.raises(CheckpointError, match="is not JSON"):
        attach(made, directory)


def test_an_adapter_on_the_hub_is_two_files():
    found = [
        adapter_config.CONFIG_NAME,
        WEIGHTS,
        "adapter_model.bin",
        "README.md",
        "checkpoint-5/" + WEIGHTS,
    ]
    kept = filter_repo_objects(found, allow_patterns=hub.WANTED, ignore_patterns=hub.UNWANTED)
    assert list(kept) == [adapter_config.CONFIG_NAME, WEIGHTS]


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
            except jaxtune.checkpoint.files.CheckpointError as error:
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
