"""Reports the memory of training steps on TPUs and GPUs, compiled without the hardware.

    pip install 'jax[tpu]'
    python benchmarks/compiled_memory.py [--target v5e] [--case NAME]

    pip install 'jax-cuda12-plugin[with-cuda]'
    python benchmarks/compiled_memory.py --target a100-80  # or another of docs/devices.md

No weights are loaded and nothing is run: the training step of a job, at its model's full size, is
compiled for one chip, and the compiler reports its peak memory, arguments included. Activations are
bfloat16, or float32 on a T4, which multiplies them in scaled float16.
"""

import argparse
import datetime
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from shapes import GEMMA_3_270M, LLAMA_3_8B, PALIGEMMA_3B

from jaxtune.display.errors import UserError
from jaxtune.runs.plan.chips import GiB, Gpu
from jaxtune.runs.plan.targets import Target, compile_only, target

compile_only()


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
    embedding: str = "device"  # or "host", for a frozen one that is not the head
    pictures: int = 0  # pictures per row; they and the prefix attend in both directions
    on_card: Mapping = field(default_factory=dict)  # XLA options for NVIDIA GPUs


PICTURED = dict(
    batch=(8, 256 + 128),
    scored=64,
    pictures=1,
    # Without a GPU to autotune on, XLA picks tiles that do not fit the vision tower's heads of 72.
    on_card={"xla_gpu_enable_triton_gemm": False},
)
QLORA_8B = Case(
    "Llama 3.1 8B, nf4 with double quantisation, LoRA r=16 all-linear, 2 × 1 × 2048 packed, every "
    "token scored (torchtune publishes 7.4 GB)",
    LLAMA_3_8B,
    rank=16,
    batch=(2, 1, 2048),
    scored=2048,
    bound=7.4,
    packed=True,
    dropout=0.0,
)
CASES = {
    "qlora_8b": replace(
        QLORA_8B,
        title=QLORA_8B.title + ", the embedding on the host",
        bound=6.5,
        embedding="host",
    ),
    "qlora_8b_device": QLORA_8B,
    "qlora_8b_whole": replace(
        QLORA_8B,
        title="Llama 3.1 8B, nf4 with double quantisation, LoRA r=16 all-linear, 2 × 2048 packed "
        "at once, every token scored, the inputs of layers in host memory",
        batch=(2, 2048),
        more={"remat": "offload"},  # 8.04 GiB without it
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


def main() -> None:
    """Compiles the cases and prints their peak memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--target", default="v5e", help="a chip of docs/devices.md, such as a100-80 (default: v5e)"
    )
    parser.add_argument(
        "--case", choices=CASES, action="append", help="case to compile, repeatable (default: all)"
    )
    options = parser.parse_args()
    try:
        chosen = target(options.target)
        [device, *_] = chosen.devices()
    except UserError as problem:
        parser.error(str(problem))
    print(f"{datetime.date.today()}, compiled for one {chosen.chip.title}")
    kept = [report(CASES[name], device, chosen) for name in options.case or CASES]
    sys.exit(not all(kept))


def report(case: Case, device: Any, chosen: Target) -> bool:
    """Compiles a case, prints its memory, and returns whether the peak is within its limit."""
    from jaxtune import sharding

    begun = time.perf_counter()
    mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), [device])
    lowered = step(case, mesh)
    compiled = lowered.compile(case.on_card if isinstance(chosen.chip, Gpu) else None)
    seconds = time.perf_counter() - begun
    used = compiled.memory_analysis()
    peak = used.peak_memory_in_bytes / GiB
    print(f"{case.title}\n  arguments {used.argument_size_in_bytes / GiB:.2f} GiB, ", end="")
    print(f"temporaries {used.temp_size_in_bytes / GiB:.2f} GiB, compiled in {seconds:.0f} s")
    kept = peak <= case.bound
    print(f"  peak {peak:.2f} GiB, limit {case.bound}: {'kept' if kept else 'BROKEN'}")
    return kept


def step(case: Case, mesh: Any):
    """Lowers a case's training step for the devices of a mesh, from shapes alone."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    import jaxtune
    from jaxtune import families, quant, sharding, tree
    from jaxtune.checkpoint.activations import computed
    from jaxtune.checkpoint.load import leaf_shapes
    from jaxtune.models import host
    from jaxtune.training.step import compiled_step

    model = families.find(case.shape).model(case.shape)
    shapes = leaf_shapes(model)
    [device, *_] = mesh.devices.flat
    dtype, precision = computed("auto", "auto", [jnp.dtype(case.dtype)], device)
    model = model.clone(dtype=dtype, precision=precision, **case.more)
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
    frozen = host.moved(made.frozen) if case.embedding == "host" else made.frozen
    frozen = host.extracted(frozen, rows.tokens)
    return compiled_step.lower(model, optimizer, made.replace(frozen=None), frozen, rows)


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
