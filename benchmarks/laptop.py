"""Runs QLoRA steps of Llama 3.1 8B on a CPU and reports the memory of the process.

    python benchmarks/laptop.py [--steps 2] [--tokens 128]

The base has the shapes of the model with all its layers, nf4 with double quantisation and the rest
in bfloat16, and random values made where they stay, so that nothing is downloaded. An adapter of
rank 16 on all linear maps is trained in float32 on one row, every token scored. The memory is the
highest resident size of the whole process (VmHWM), imports and compiler included, read on Linux.
"""

import argparse
import datetime
import os
import sys
import time
from typing import Any

import ml_dtypes
import numpy as np
import resident
from shapes import LLAMA_3_8B, cpu

os.environ["JAX_PLATFORMS"] = "cpu"
MEMORY = 10e9  # asked maximum of the process, in bytes
RANK, KIND = 16, "nf4-double"
SCALE = 0.02  # of the largest weight of a block


def main() -> None:
    """Makes the weights, trains, and reports; exits with 1 if the bound is not kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2, help="training steps (default: 2)")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of the row (default: 128)")
    options = parser.parse_args()
    print(f"{datetime.date.today()}, {cpu()}, {os.cpu_count()} cores")
    train(options.steps, options.tokens)
    peak = resident.highest()
    kept = peak <= MEMORY
    print(f"peak {peak / 1e9:.2f} GB, limit {MEMORY / 1e9:.0f}: {'kept' if kept else 'BROKEN'}")
    sys.exit(not kept)


def train(steps: int, tokens: int) -> None:
    """Trains an adapter on a random base, and prints the loss and the seconds of each step."""
    import jax
    import jax.numpy as jnp

    import jaxtune
    from jaxtune import families, sharding, tree
    from jaxtune.data.batches import Batch

    model = families.find(LLAMA_3_8B).model(LLAMA_3_8B).clone(dtype=jnp.dtype("float32"))
    variables = {"params": tree.unflatten(base(model))}
    held = sharding.total_bytes(variables)
    variables = jaxtune.add_lora(variables, rank=RANK, key=jax.random.key(0))
    optimizer = jaxtune.optimizer("adamw", "constant", lr=2e-4, clip_norm=1.0, total_steps=steps)
    state = jaxtune.TrainState.create(variables, optimizer=optimizer)
    row = np.random.default_rng(0).integers(0, LLAMA_3_8B["vocab_size"], (1, tokens + 1))
    row = row.astype(np.int32)
    batch = Batch(
        tokens=row[:, :-1],
        positions=None,
        segments=None,
        valid=np.ones((1, tokens), bool),
        causal=None,
        where=np.arange(tokens, dtype=np.int32)[None],
        targets=row[:, 1:],
        weights=np.ones((1, tokens), np.float32),
    )
    print(f"base {held / 1e9:.2f} GB, 1 × {tokens} tokens")
    for step in range(steps):
        begun = time.perf_counter()
        state, metrics = jaxtune.train_step(model, optimizer, state, batch)
        loss = float(metrics["loss"])
        print(f"step {step + 1}: loss {loss!r}, {time.perf_counter() - begun:.1f} s", flush=True)


def base(model: Any) -> dict[str, Any]:
    """Returns the weights of a model by path, random, with the linear maps of layers quantised."""
    import jax

    from jaxtune import quant
    from jaxtune.checkpoint.load import leaf_shapes

    random = np.random.default_rng(0)

    def weights(path: str, shape: tuple[int, ...]) -> jax.Array:
        if path.endswith("/scale"):
            return jax.device_put(np.ones(shape, ml_dtypes.bfloat16))
        array = np.empty(shape, ml_dtypes.bfloat16)
        for part in array:
            part[...] = random.standard_normal(part.shape, np.float32) * SCALE
        return jax.device_put(array)

    def bytes_of(described: jax.ShapeDtypeStruct) -> jax.Array:
        array = np.empty(described.shape, np.uint8)
        for part in array:
            part[...] = random.integers(0, 256, part.shape, np.uint8)
        return jax.device_put(array.view(described.dtype))

    def quantized(_: str, shape: tuple[int, ...]) -> quant.Quantized:
        made = quant.abstract(shape, KIND)
        return made.replace(
            codes=bytes_of(made.codes),
            scales=bytes_of(made.scales),
            peaks=jax.device_put(np.full(made.peaks.shape, SCALE / 4, np.float32)),
            offset=jax.device_put(np.full(made.offset.shape, SCALE, np.float32)),
        )

    shapes = leaf_shapes(model)
    kinds = quant.kinds(shapes, KIND)
    ways = {path: quantized if path in kinds else weights for path in shapes}
    return {path: ways[path](path, shape) for path, shape in shapes.items()}


if __name__ == "__main__":
    main()
