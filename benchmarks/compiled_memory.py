"""Reports the memory of training steps on TPUs and GPUs, compiled without the hardware.

    pip install libtpu
    python benchmarks/compiled_memory.py [--target v5e] [--case NAME]

    pip install 'jax-cuda12-plugin[with-cuda]'
    python benchmarks/compiled_memory.py --target a100  # or t4

No weights are loaded and nothing is run: the training step of a job, at its model's full size, is
compiled for one chip, and the compiler reports its peak memory, arguments included. Activations are
bfloat16, or float32 on a T4, which does not support bfloat16.
"""

import argparse
import datetime
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shapes import GEMMA_3_270M, LLAMA_3_8B, PALIGEMMA_3B

os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}

GiB = 2**30


@dataclass(frozen=True)
class Case:
    """A training step, and the limit on its peak memory."""

    title: str
    shape: Mapping
    rank: int | None  # rank of the adapters; None for no adapters
    batch: tuple[int, ...]  # [B, T] or [A, B, T]
    scored: int  # scored tokens per row
    bound: float  # maximum peak memory, in GiB
    packed: bool = False
    quant: str | None = "nf4-double"
    dropout: float = 0.05
    more: Mapping = field(default_factory=dict)  # further fields of the model
    dtype: str = "bfloat16"  # of frozen weights that are not quantised
    trainable: Sequence = ()  # rules; empty: the adapters are trained
    optimizer: str = "adamw"
    pictures: int = 0  # pictures per row; they and the prefix attend in both directions
    on_card: Mapping = field(default_factory=dict)  # XLA options for NVIDIA GPUs


PICTURED = dict(
    batch=(8, 256 + 128),
    scored=64,
    pictures=1,
    # Without a GPU to autotune on, XLA picks tiles that do not fit the vision tower's heads of 72.
    on_card={"xla_gpu_enable_triton_gemm": False},
)
CASES = {
    "qlora_8b": Case(
        "Llama 3.1 8B, nf4 with double quantisation, LoRA r=16 all-linear, 2 × 1 × 2048 packed, "
        "every token scored (torchtune publishes 7.4 GB)",
        LLAMA_3_8B,
        rank=16,
        batch=(2, 1, 2048),
        scored=2048,
        bound=7.4,
        packed=True,
        dropout=0.0,
    ),
    "qlora_8b_whole": Case(
        "Llama 3.1 8B, nf4 with double quantisation, LoRA r=16 all-linear, 2 × 2048 packed at "
        "once, every token scored, the inputs of layers in host memory",
        LLAMA_3_8B,
        rank=16,
        batch=(2, 2048),
        scored=2048,
        bound=7.4,  # 8.04 GiB without offload
        packed=True,
        dropout=0.0,
        more={"remat": "offload"},
    ),
    "totto": Case(
        "Gemma 3 270M, nf4, LoRA r=8 all-linear, 16 × 1 × 1024, every token scored",
        GEMMA_3_270M,
        rank=8,
        batch=(16, 1, 1024),
        scored=1024,
        bound=1.5,
        quant="nf4",
    ),
    "paligemma": Case(
        "PaliGemma 3B at 224 pixels, only the decoder's attention by SGD, the rest in float16, "
        "8 × (256 + 128)",
        PALIGEMMA_3B,
        rank=None,
        bound=13,
        quant=None,
        dtype="float16",
        trainable=((r"params/llm/layers/attn/.*", True), (r".*", False)),
        optimizer="sgd",
        **PICTURED,
    ),
    "paligemma_qlora": Case(
        "PaliGemma 3B at 224 pixels, nf4, LoRA r=8 on all linear maps of the decoder, the rest in "
        "float16, 8 × (256 + 128)",
        PALIGEMMA_3B,
        rank=8,
        bound=6,
        quant="nf4",
        dtype="float16",
        **PICTURED,
    ),
}
# Descriptions of NVIDIA GPUs that XLA needs to compile for them.
CARDS = {
    "a100": """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 167936 threads_per_core_limit: 2048 core_count: 108
  fpus_per_core: 64 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 2039000000000 l2_cache_size: 41943040
  clock_rate_ghz: 1.41 device_memory_size: 84974239744 shared_memory_per_block_optin: 166912
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability { major: 8 minor: 0 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 patch: 0 }
runtime_version { major: 12 minor: 9 patch: 0 }
""",
    "t4": """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 65536 threads_per_core_limit: 1024 core_count: 40
  fpus_per_core: 64 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 320064000000 l2_cache_size: 4194304
  clock_rate_ghz: 1.59 device_memory_size: 15642329088 shared_memory_per_block_optin: 65536
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability { major: 7 minor: 5 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 patch: 0 }
runtime_version { major: 12 minor: 9 patch: 0 }
""",
}


def main() -> None:
    """Compiles the cases and prints their peak memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--target", default="v5e", help="v5e, v4, v5p, v6e, a100 or t4 (default: v5e)"
    )
    parser.add_argument(
        "--case", choices=CASES, action="append", help="case to compile, repeatable (default: all)"
    )
    options = parser.parse_args()
    [device, *_] = described(options.target)
    print(f"{datetime.date.today()}, compiled for one {device.device_kind or options.target}")
    kept = [report(CASES[name], device, options.target) for name in options.case or CASES]
    sys.exit(not all(kept))


def described(target: str) -> list:
    """Returns descriptions of a target's devices; exits with 2 without its compiler.

    A TPU may be given with a topology, such as `v5e:2x4`.
    """
    from jax.experimental import topologies

    try:
        if target in CARDS:
            topology = topologies.get_topology_desc(
                platform="cuda", topology_name="", topology="1x1x1", target_config=CARDS[target]
            )
        else:
            smallest = "2x2x1" if target in ("v4", "v5p") else "2x2"
            name = target if ":" in target else f"{target}:{smallest}"
            topology = topologies.get_topology_desc(platform="tpu", topology_name=name)
    except Exception as problem:
        needed = "jax-cuda12-plugin[with-cuda]" if target in CARDS else "libtpu"
        print(f"no compiler for {target}; run: pip install '{needed}'\n  {problem}")
        sys.exit(2)
    return topology.devices


def report(case: Case, device: Any, target: str) -> bool:
    """Compiles a case, prints its memory, and returns whether the peak is within its limit."""
    from jaxtune import sharding

    begun = time.perf_counter()
    mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), [device])
    lowered = step(case, mesh, "float32" if target == "t4" else "bfloat16")
    compiled = lowered.compile(case.on_card if target in CARDS else None)
    seconds = time.perf_counter() - begun
    used = compiled.memory_analysis()
    peak = used.peak_memory_in_bytes / GiB
    print(f"{case.title}\n  arguments {used.argument_size_in_bytes / GiB:.2f} GiB, ", end="")
    print(f"temporaries {used.temp_size_in_bytes / GiB:.2f} GiB, compiled in {seconds:.0f} s")
    kept = peak <= case.bound
    print(f"  peak {peak:.2f} GiB, limit {case.bound}: {'kept' if kept else 'BROKEN'}")
    return kept


def step(case: Case, mesh: Any, compute: str = "bfloat16"):
    """Lowers a case's training step for the devices of a mesh, from shapes alone."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    import jaxtune
    from jaxtune import families, quant, sharding, tree
    from jaxtune.checkpoint.load import leaf_shapes
    from jaxtune.training.step import compiled_step

    model = families.find(case.shape).model(case.shape)
    model = model.clone(dtype=jnp.dtype(compute), **case.more)
    shapes = leaf_shapes(model)
    kinds = quant.kinds(shapes, case.quant)
    held = {
        path: quant.abstract(shape, kinds[path])
        if path in kinds
        else jax.ShapeDtypeStruct(shape, case.dtype)
        for path, shape in shapes.items()
    }
    settings = dict(lr=2e-4, clip_norm=1.0, total_steps=1000)
    optimizer = jaxtune.optimizer(case.optimizer, "cosine", **settings)

    def state(params):
        variables = {"params": params}
        if case.rank:
            lora = dict(rank=case.rank, dropout=case.dropout, key=jax.random.key(0))
            variables = jaxtune.add_lora(variables, **lora)
        rules = dict(trainable=case.trainable) if case.trainable else {}
        return jaxtune.TrainState.create(variables, optimizer=optimizer, **rules)

    def placed(leaf, where):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    made = jax.eval_shape(state, tree.unflatten(held))
    made = jax.tree.map(placed, made, sharding.of_state(made, mesh))
    rows = PartitionSpec(*[None] * (len(case.batch) - 2), *sharding.ROWS)
    rows = jax.tree.map(lambda leaf: placed(leaf, NamedSharding(mesh, rows)), batch(case, model))
    return compiled_step.lower(model, optimizer, made.replace(frozen=None), made.frozen, rows)


def batch(case: Case, model: Any):
    """Returns the batch of a case as shapes."""
    import jax
    import jax.numpy as jnp

    from jaxtune.data.batches import Batch

    def array(dtype, *size):
        return jax.ShapeDtypeStruct((*case.batch[:-1], *size), dtype)

    length = case.batch[-1]
    side = model.pictures.side if model.pictures else 0
    return Batch(
        tokens=array(jnp.int32, length),
        positions=array(jnp.int32, length) if case.packed else None,
        segments=array(jnp.int32, length) if case.packed else None,
        valid=array(jnp.bool_, length),
        causal=array(jnp.bool_, length) if case.pictures else None,
        where=array(jnp.int32, case.scored),
        targets=array(jnp.int32, case.scored),
        weights=array(jnp.float32, case.scored),
        images=array(jnp.float32, case.pictures, side, side, 3) if case.pictures else None,
    )


if __name__ == "__main__":
    main()
