"""Published models' shapes, and checkpoints of random weights in them."""

import json
import platform
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

GEMMA_3_270M = dict(
    model_type="gemma3_text",
    architectures=["Gemma3ForCausalLM"],
    vocab_size=262_144,
    hidden_size=640,
    intermediate_size=2048,
    num_hidden_layers=18,
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=256,
    query_pre_attn_scalar=256,
    sliding_window=512,
    max_position_embeddings=32_768,
    layer_types=(["sliding_attention"] * 5 + ["full_attention"]) * 3,
    rope_theta=1_000_000.0,
    rope_local_base_freq=10_000.0,
    tie_word_embeddings=True,
    pad_token_id=0,
    eos_token_id=1,
    bos_token_id=2,
    torch_dtype="bfloat16",
)
LLAMA_3_8B = dict(
    model_type="llama",
    architectures=["LlamaForCausalLM"],
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=131_072,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
    rope_theta=500_000.0,
    rope_scaling=dict(
        rope_type="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    ),
    torch_dtype="bfloat16",
)
LLAMA_3_1B = LLAMA_3_8B | dict(
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    head_dim=64,
    tie_word_embeddings=True,
)


def write_checkpoint(directory: Path, shape: Mapping) -> tuple[int, int]:
    """A random checkpoint in bfloat16, unless it is there.

    Returns the parameters of its largest stacked leaf, and of all.
    """
    from jaxtune import families
    from jaxtune.checkpoint import names
    from jaxtune.checkpoint.files import write_sharded
    from jaxtune.checkpoint.load import leaf_shapes
    from jaxtune.models.decoder import Decoder

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(shape))
    _, family, config = families.read(directory)
    shapes = leaf_shapes(Decoder(config))
    tensors = names.by_tensor(names.pieces(family.tables[0], shapes))
    plan = {name: (parts[0].shape, ml_dtypes.bfloat16) for name, parts in tensors.items()}
    random = np.random.default_rng(0)

    def produce(name):
        values = random.standard_normal(plan[name][0], np.float32) * 0.02
        return values.astype(ml_dtypes.bfloat16)

    if not (directory / "model.safetensors").exists():
        write_sharded(directory, plan, produce)
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    return max(sizes), sum(sizes)


def cpu() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    found = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return found[0] if found else platform.processor()
