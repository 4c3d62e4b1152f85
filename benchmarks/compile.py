"""Measures the compile time of a deep model's forward pass, relative to one of six layers.

    python benchmarks/compile.py [--repeat 5]

The shape is that of Gemma 3 4B (34 layers, 5 local to 1 global); no weights are needed. The two
models are compiled alternately, from scratch each time.
"""

import argparse
import datetime
import os
import statistics
import sys
import time
from dataclasses import replace

import jax
import jax.numpy as jnp

from jaxtune import families
from jaxtune.models.decoder import Decoder, DecoderConfig

GEMMA_3_4B = dict(
    model_type="gemma3_text",
    hidden_size=2560,
    intermediate_size=10_240,
    num_hidden_layers=34,
    sliding_window=1024,
    rope_scaling=dict(factor=8.0, rope_type="linear"),
)
SHALLOW, BOUND = 6, 1.5


def main() -> None:
    """Compiles both alternately and prints the ratio of their median times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5, help="timed rounds (default: 5)")
    repeat = parser.parse_args().repeat
    deep = families.find(GEMMA_3_4B).decoder(GEMMA_3_4B)
    configs = (replace(deep, layers=deep.layers[:SHALLOW]), deep)
    times = [[compile_time(config) for config in configs] for _ in range(repeat + 1)][1:]
    shallow, whole = (statistics.median(each) for each in zip(*times, strict=True))
    print(f"{datetime.date.today()}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores")
    print(f"{SHALLOW} layers {shallow:.2f} s, {len(deep.layers)} layers {whole:.2f} s", end=", ")
    print(f"ratio {whole / shallow:.2f} (limit {BOUND})")
    sys.exit(whole / shallow > BOUND)


def compile_time(config: DecoderConfig) -> float:
    """Returns the seconds to trace, lower and compile a forward pass over 512 tokens."""
    model = Decoder(config)
    tokens = jax.ShapeDtypeStruct((1, 512), jnp.int32)
    variables = jax.eval_shape(model.init, jax.eval_shape(jax.random.key, 0), tokens)
    jax.clear_caches()
    begun = time.perf_counter()
    jax.jit(model.apply).lower(variables, tokens).compile()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
