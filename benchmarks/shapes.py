"""Configs of published models, and checkpoints of their shapes with random weights."""

import json
import os
import platform
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

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
GEMMA_3_1B = GEMMA_3_270M | dict(
    hidden_size=1152,
    intermediate_size=6912,
    num_hidden_layers=26,
    layer_types=((["sliding_attention"] * 5 + ["full_attention"]) * 5)[:26],
)
GEMMA_3_4B = (
    GEMMA_3_270M
    | dict(  # its text model
        vocab_size=262_208,
        hidden_size=2560,
        intermediate_size=10_240,
        num_hidden_layers=34,
        num_attention_heads=8,
        num_key_value_heads=4,
        sliding_window=1024,
        max_position_embeddings=131_072,
        layer_types=((["sliding_attention"] * 5 + ["full_attention"]) * 6)[:34],
        rope_scaling=dict(rope_type="linear", factor=8.0),
    )
)
GEMMA_2_9B = dict(
    model_type="gemma2",
    architectures=["Gemma2ForCausalLM"],
    vocab_size=256_000,
    hidden_size=3584,
    intermediate_size=14_336,
    num_hidden_layers=42,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=256,
    query_pre_attn_scalar=256,
    sliding_window=4096,
    max_position_embeddings=8192,
    attn_logit_softcapping=50.0,
    final_logit_softcapping=30.0,
    rope_theta=10_000.0,
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
LLAMA_3_3B = LLAMA_3_8B | dict(
    hidden_size=3072,
    intermediate_size=8192,
    num_hidden_layers=28,
    num_attention_heads=24,
    tie_word_embeddings=True,
)
LLAMA_3_70B = LLAMA_3_8B | dict(
    hidden_size=8192,
    intermediate_size=28_672,
    num_hidden_layers=80,
    num_attention_heads=64,
)
PALIGEMMA_3B = dict(  # for pictures of 224 pixels
    model_type="paligemma",
    architectures=["PaliGemmaForConditionalGeneration"],
    hidden_size=2048,
    projection_dim=2048,
    image_token_index=257_152,
    bos_token_id=2,
    eos_token_id=1,
    pad_token_id=0,
    text_config=dict(
        model_type="gemma",
        vocab_size=257_152,
        hidden_size=2048,
        intermediate_size=16_384,
        num_hidden_layers=18,
        num_attention_heads=8,
        num_key_value_heads=1,
        head_dim=256,
    ),
    vision_config=dict(
        model_type="siglip_vision_model",
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        patch_size=14,
        image_size=224,
    ),
)


def write_checkpoint(directory: Path, shape: Mapping) -> tuple[int, int]:
    """Writes a random bfloat16 checkpoint, unless it exists.

    Returns the number of parameters in its largest stacked leaf, and in all leaves.
    """
    from jaxtune import families
    from jaxtune.checkpoint.formats.safetensors import write_sharded
    from jaxtune.checkpoint.load import leaf_shapes
    from jaxtune.families import names

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(shape))
    _, family, model = families.read_config(directory)
    shapes = leaf_shapes(model)
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


def write_archive(path: Path, shape: Mapping, method: int) -> int:
    """Writes PaliGemma in big_vision's layout as sparse float16 zeros, unless the file exists.

    `method` is a compression method of zipfile. Returns the number of elements of the largest array
    that is read at once: a leaf of the model, or for compressed archives an array of the file.
    """
    from jaxtune import families
    from jaxtune.checkpoint.load import leaf_shapes
    from jaxtune.families import bigvision, names

    model = families.find(shape).model(shape)
    shapes = leaf_shapes(model)
    tensors = names.by_tensor(names.pieces(bigvision.tables(model)[0], shapes))
    arrays = {name: parts[0].shape for name, parts in tensors.items()}
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file, zipfile.ZipFile(Sparse(file), "w", method) as archive:
            for name, size in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    _write_zeros(member, size)
    read = shapes if method == zipfile.ZIP_STORED else arrays
    return max(int(np.prod(size)) for size in read.values())


def _write_zeros(member: IO[bytes], size: tuple[int, ...]) -> None:
    """Writes a float16 array of zeros, a megabyte at a time."""
    described = {"descr": "<f2", "fortran_order": False, "shape": size}
    np.lib.format.write_array_header_1_0(member, described)
    left = 2 * int(np.prod(size))
    while left:
        left -= member.write(bytes(min(left, 2**20)))


class Sparse:
    """A file that seeks over blocks of zeros instead of writing them, which leaves holes."""

    def __init__(self, file: IO[bytes]):
        self.file = file

    def write(self, data: bytes) -> int:
        """Writes the data, or seeks over it if it is all zeros."""
        if data.count(0) < len(data):
            return self.file.write(data)
        self.file.seek(len(data), os.SEEK_CUR)
        return len(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def cpu() -> str:
    """Returns the processor's model name, as far as the system reports one."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    found = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return found[0] if found else platform.processor()
