"""What PEFT wrote, read and attached: it computes PEFT's logits, or is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from huggingface_hub.utils import filter_repo_objects
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file, save_file

import jaxtune
from jaxtune import tree
from jaxtune.checkpoint import hub
from jaxtune.checkpoint.formats.safetensors import CheckpointError, Safetensors
from jaxtune.checkpoint.peft import adapter_config, stacking
from tests import reference
from tests.checkpoint.peft.adapters import (
    FUSED,
    NEAR,
    PLAIN,
    TOWER,
    WEIGHTS,
    adapted,
    adapters,
    attach,
    begun,
    check_out,
    check_same,
    config,
    error,
    live,
    randomised,
    read_by_peft,
    written_by_peft,
)
from tests.marks import slow_after


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


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3': expected LORA, the only"),
        ({"bias": "all"}, "bias is 'all': expected 'none', an adapter without trained biases"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\]"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is"),
        ({"init_lora_weights": "olora"}, "init_lora_weights is 'olora'.*path_initial_model"),
        ({"r": 5}, r"q_proj: lora_A.weight has shape \[4, 48\], but the config's rank is 5"),
        ({"r": "4"}, "r is '4': expected a positive integer"),
        ({"rank_pattern": {"v_proj": 2}}, r"v_proj: lora_B.weight has shape \[24, 4\].*rank is 2"),
        ({"alpha_pattern": {"(": 2}}, r"'\(.*' is not a valid regular expression"),
        ({"target_modules": ["q_proj"]}, "k_proj: it is present, but target_modules"),
        ({"target_modules": 7}, "target_modules is 7: expected a name, a list of names"),
        ({"lora_dropout": 1}, "lora_dropout is 1: expected a number from 0 to less than 1"),
        ({"use_dora": True}, "q_proj: lora_magnitude_vector is missing"),
        (
            {"lora_alpha": 1e308},
            r"lora_alpha .* is 1e\+308 for model.*: expected a factor of at mo",
        ),
        ({"alpha_pattern": {"v_proj": -1e30}}, r"alpha_pattern\) is -1e\+30 for .*v_proj, which m"),
        ({"lora_alpha": 10**400}, "lora_alpha is 1000.*…: expected a number"),
        ({"r": 10**400}, "r is 1000.*…: expected a positive integer"),
        (
            {"rank_pattern": {"q_proj": 0}},
            "rank_pattern is {'q_proj': 0}: expected an object whose",
        ),
        ({"target_modules": "(.*)*x"}, "_proj: it is present, but target_modules"),
        (
            {"target_modules": "(?:(?=(?:(?=(?:(?=(?:(?=.*)*.*)*.*)*.*)*.*)*.*)*).)*x"},
            "target_modules: .* takes too long to match: write it without nested repetitions",
        ),
        ({"target_modules": "(" * 5000}, r"target_modules: '\(\(.*…' is (nested|not a valid)"),
        ({"exclude_modules": r"(a)\1"}, "exclude_modules: .* has a reference to a group"),
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
            "missing  model.layers.1.mlp.up_proj: the config's target_modules select it",
        ),
        (
            {f"{STEM}.lora_B.weight": np.ones((71, 4), np.float32)},
            "up_proj: lora_B.weight has size 71, the model expects 72",
        ),
        ({f"{STEM}.lora_B.weight": np.ones((72, 4), np.int8)}, "int8.*not a LoRA tensor"),
        ({f"{STEM}.lora_B.bias": np.ones(72)}, "lora_B.bias .*not a LoRA tensor"),
        (
            {"base_model.model.lm_head.base_layer.weight": np.ones((211, 48))},
            "a full weight.*save_embedding_layers=False",
        ),
        ({f"{STEM}.lora_magnitude_vector": np.ones(72)}, "is present, but use_dora is false"),
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
    ) as refused:
        attach(pair(FUSED), directory)
    assert len(str(refused.value).splitlines()) == 1 + 8 + 1  # a title, and how many more
    with pytest.raises(
        CheckpointError, match=r"k_proj: lora_B.weight has size 24, the model expects 12"
    ):
        attach(pair("mistral-mqa"), directory)
    written_by_peft(pair(TOWER), tmp_path / "tower")
    tensors = load_file(tmp_path / "tower" / WEIGHTS)
    vision = next(name for name in tensors if "vision" in name and "lora_B" in name)
    save_file(tensors | {vision: tensors[vision] + 1}, tmp_path / "tower" / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"unknown  .*vision_tower"):
        attach(pair(TOWER), tmp_path / "tower")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_adapter_that_is_not_finite(pair, value, tmp_path):
    made = pair("llama-linear")
    leaves = adapters(begun(made))
    leaf = leaves["layers/attn/q/w"]
    leaves["layers/attn/q/w"] = leaf.replace(b=jnp.asarray(leaf.b).at[1, 0, 0].set(value))
    broken = {**made.variables, "lora": tree.unflatten(leaves)}
    directory = jaxtune.save_adapter(broken, tmp_path / "out", made.directory)
    with pytest.raises(CheckpointError, match=r"NaN or infinity, such .*layers.1.*q_proj"):
        attach(made, directory)


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
    with pytest.raises(CheckpointError, match="the variables already have adapters: merge"):
        jaxtune.load_adapter(made.model, adapted(made), directory)
    with pytest.raises(
        CheckpointError, match=r"a config.json but no adapter_config.json: .*jaxtune.load"
    ):
        attach(made, made.directory)
    with pytest.raises(
        CheckpointError, match=r"no adapter_config.json: expected the directory of an adapter"
    ):
        attach(made, tmp_path)
    with pytest.raises(CheckpointError, match="origin is not set"):
        jaxtune.load_adapter(made.model.clone(origin=None), made.variables, directory)
    whole = (directory / WEIGHTS).read_bytes()
    (directory / WEIGHTS).write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match="is truncated"):
        attach(made, directory)
    (directory / WEIGHTS).rename(directory / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="only as pickles"):
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
