"""The memory a training step takes on hardware that need not be here, from its own compiler.

    pip install libtpu
    python benchmarks/compiled_memory.py [--target v5e] [--case NAME]

    pip install 'jax-cuda12-plugin[with-cuda]'
    python benchmarks/compiled_memory.py --target a100

Nothing is loaded or run: the step of a job at its model's true shape is compiled for one chip, and
the compiler says what it will hold at most, arguments included.
"""

import argparse
import datetime
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shapes import GEMMA_3_270M, LLAMA_3_8B

os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}

GiB = 2**30


@dataclass(frozen=True)
class Case:
    """A step, and the memory it may take."""

    title: str
    shape: Mapping
    rank: int
    batch: tuple[int, ...]  # [B, T] or [A, B, T]
    scored: int  # positions of a row
    bound: float  # GiB
    packed: bool = False
    quant: str | None = "nf4-double"
    dropout: float = 0.05
    more: Mapping = field(default_factory=dict)  # of the model


CASES = {
    "qlora_8b": Case(
        "Llama 3.1 8B, nf4 with double quantisation, LoRA r=16 all-linear, 2 × 1 × 2048 packed, "
        "every position scored (torchtune publishes 7.4 GB)",
        LLAMA_3_8B,
        rank=16,
        batch=(2, 1, 2048),  # both rows at once take 8.04 GiB
        scored=2048,
        bound=7.4,
        packed=True,
        dropout=0.0,
    ),
    "totto": Case(
        "Gemma 3 270M, nf4, LoRA r=8 all-linear, 16 × 1 × 1024, every position scored",
        GEMMA_3_270M,
        rank=8,
        batch=(16, 1, 1024),
        scored=1024,
        bound=1.5,
        quant="nf4",
    ),
}
# What XLA must know of an NVIDIA card to compile for it.
A100 = """
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
"""


def main() -> None:
    """Compile every case and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="v5e", help="v5e, v4, v5p, v6e or a100")
    parser.add_argument("--case", choices=CASES, action="append")
    options = parser.parse_args()
    [device, *_] = devices(options.target)
    print(f"{datetime.date.today()}, compiled for one {device.device_kind or options.target}")
    kept = [report(CASES[name], device) for name in options.case or CASES]
    sys.exit(not all(kept))


def devices(target: str) -> list:
    """Descriptions of chips, from the compiler that makes programs for them."""
    from jax.experimental import topologies

    try:
        if target == "a100":
            topology = topologies.get_topology_desc(
                platform="cuda", topology_name="", topology="1x1x1", target_config=A100
            )
        else:
            name = f"{target}:2x2x1" if target in ("v4", "v5p") else f"{target}:2x2"
            topology = topologies.get_topology_desc(platform="tpu", topology_name=name)
    except Exception as problem:
        needed = "jax-cuda12-plugin[with-cuda]" if target == "a100" else "libtpu"
        print(f"no compiler for {target}: pip install '{needed}'\n  {problem}")
        sys.exit(2)
    return topology.devices


def report(case: Case, device: Any) -> bool:
    """Compile a case, print what it takes, and say whether that is within its bound."""
    begun = time.perf_counter()
    compiled = step(case, device).compile()
    seconds = time.perf_counter() - begun
    used = compiled.memory_analysis()
    peak = used.peak_memory_in_bytes / GiB
    print(f"{case.title}\n  arguments {used.argument_size_in_bytes / GiB:.2f} GiB, ", end="")
    print(f"temporaries {used.temp_size_in_bytes / GiB:.2f} GiB, compiled in {seconds:.0f} s")
    kept = peak <= case.bound
    print(f"  peak {peak:.2f} GiB, at most {case.bound}: {'kept' if kept else 'BROKEN'}")
    return kept


def step(case: Case, device: Any):
    """A case's training step, lowered for a device, from shapes alone."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    import jaxtune
    from jaxtune import families, quant, tree
    from jaxtune.checkpoint.load import leaf_shapes
    from jaxtune.models.decoder import Decoder
    from jaxtune.train import compiled_step

    where = NamedSharding(Mesh(np.asarray([device]), ("fsdp",)), PartitionSpec())
    config = families.find(case.shape).decoder(case.shape)
    model = Decoder(config, dtype=jnp.bfloat16, **case.more)
    shapes = leaf_shapes(model)
    kinds = quant.kinds(shapes, case.quant)
    held = {
        path: quant.abstract(shape, kinds[path])
        if path in kinds
        else jax.ShapeDtypeStruct(shape, jnp.bfloat16)
        for path, shape in shapes.items()
    }
    optimizer = jaxtune.optimizer("adamw", "cosine", lr=2e-4, clip_norm=1.0, total_steps=1000)

    def state(params):
        lora = dict(rank=case.rank, dropout=case.dropout, key=jax.random.key(0))
        variables = jaxtune.add_lora({"params": params}, **lora)
        return jaxtune.TrainState.create(variables, optimizer=optimizer)

    made = jax.eval_shape(state, tree.unflatten(held))
    made, rows = (
        jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), each
        )
        for each in (made, batch(case))
    )
    return compiled_step.lower(model, optimizer, made.replace(frozen=None), made.frozen, rows)


def batch(case: Case):
    """The shapes of a case's rows."""
    import jax
    import jax.numpy as jnp

    from jaxtune.data.batches import Batch

    def array(dtype, *size):
        return jax.ShapeDtypeStruct((*case.batch[:-1], *size), dtype)

    length = case.batch[-1]
    return Batch(
        tokens=array(jnp.int32, length),
        positions=array(jnp.int32, length) if case.packed else None,
        segments=array(jnp.int32, length) if case.packed else None,
        valid=array(jnp.bool_, length),
        causal=None,
        where=array(jnp.int32, case.scored),
        targets=array(jnp.int32, case.scored),
        weights=array(jnp.float32, case.scored),
    )


if __name__ == "__main__":
    main()
