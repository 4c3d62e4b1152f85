"""Compares attention in blocks with the plain form and with torch, forward and backward, on a CPU.

    pip install torch
    python benchmarks/attention.py [--length 512 …] [--rounds 5]
    python benchmarks/attention.py --pictures 8 [--length 1024]

One row of tokens in float32, four query heads that share one key head, with heads of 64 and of 256,
causal, without a window and with one of 512 tokens. A call computes the attended values and the
gradients of queries, keys and values. The forms take turns; the times are medians. Memory is what
the process takes at most above what it held before a call (VmHWM), which is read on Linux only.

With `--pictures`, it compares the plain form with blocks for SigLIP's heads instead: 16 of 72,
which are also padded to 80, 96 and 128.
"""

import argparse
import datetime
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import resident
from shapes import cpu

LENGTHS = (512, 1024, 2048, 4096, 8192)
WIDTHS, WINDOWS, HEADS = (64, 256), (None, 512), 4
SLOWER = 1.1  # most that the blocks may take, as a multiple of the plain form
FASTER_FROM = 4096  # tokens from which on they must take less
WINDOWED = (8192, 1 / 3)  # tokens, and the most that they may take of it with a window
SIGLIP = 72  # width of its heads
MiB = 2**20


def main() -> None:
    """Measures every case, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, action="append", choices=LENGTHS)
    parser.add_argument("--rounds", type=int, default=5, help="calls of each form (default: 5)")
    parser.add_argument("--pictures", type=int, help="pictures of --length patches")
    options = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if options.pictures:
        for length in options.length or (1024,):
            pictured(options.pictures, length, options.rounds)
        return
    print(f"{datetime.date.today()}, {cpu()}, {os.cpu_count()} cores, jaxtune / plain / torch")
    print("| tokens | head | window | ms | MiB | jaxtune's time, of plain's | |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    cases = [
        (length, width, window)
        for length in options.length or LENGTHS
        for width in WIDTHS
        for window in WINDOWS
    ]
    kept = [report(*case, options.rounds) for case in cases]
    sys.exit(not all(kept))


def report(length: int, width: int, window: int | None, rounds: int) -> bool:
    """Measures a case, prints its row, and returns whether its bounds are kept."""
    shapes = [(1, length, heads, width) for heads in (HEADS, 1, 1, HEADS)]
    random = np.random.default_rng(0)
    arrays = [random.standard_normal(shape, np.float32) for shape in shapes]
    forms = {"jaxtune": jax_form("blockwise", arrays, window)}
    forms["plain"] = jax_form("plain", arrays, window)
    forms["torch"] = torch_form(arrays, window)
    memory = {
        name: taken(form) for name, form in forms.items()
    }  # of the first call, which warms up
    few = max(1, min(rounds, rounds * 2048 // length))
    seconds: Mapping[str, list[float]] = {name: [] for name in forms}
    for _ in range(few):
        for name, form in forms.items():
            begun = time.perf_counter()
            form()
            seconds[name].append(time.perf_counter() - begun)
    times = {name: statistics.median(each) for name, each in seconds.items()}
    ratio = times["jaxtune"] / times["plain"]
    kept = ratio <= bound(length, window)
    figures = [
        " / ".join(f"{times[name] * 1e3:,.0f}" for name in forms),
        " / ".join(f"{memory[name] / MiB:,.0f}" for name in forms),
        f"{ratio:.2f}",
        "kept" if kept else "BROKEN",
    ]
    print(f"| {length:,} | {width} | {window or ''} | {' | '.join(figures)} |", flush=True)
    return kept


def pictured(pictures: int, patches: int, rounds: int) -> None:
    """Measures SigLIP's attention, forward and backward, and prints a row for each form."""
    import jax
    import jax.numpy as jnp

    from jaxtune.models.attention import attend

    print(f"{datetime.date.today()}, {cpu()}, {pictures} × {patches:,} patches, heads of {SIGLIP}")
    print("| form | head | ms | temporaries, MiB |\n| --- | --- | --- | --- |")
    random = np.random.default_rng(0)
    shape = (pictures, patches, 16, SIGLIP)
    given = [jnp.asarray(random.standard_normal(shape, np.float32)) for _ in range(4)]
    how = dict(kind=jnp.int32(0), windows=(None,), scale=SIGLIP**-0.5)

    def loss(q, k, v, weight, form, width):
        wide = (jnp.pad(x, ((0, 0),) * 3 + ((0, width - SIGLIP),)) for x in (q, k, v))
        out = attend(*wide, None, None, **how, implementation=form)[..., :SIGLIP]
        return (out * weight).sum()

    gradient = jax.jit(jax.value_and_grad(loss, (0, 1, 2)), static_argnums=(4, 5))
    cases = [("plain", SIGLIP), *(("blockwise", width) for width in (SIGLIP, 80, 96, 128))]
    steps = {case: gradient.lower(*given, *case).compile() for case in cases}
    seconds: Mapping[tuple, list[float]] = {case: [] for case in cases}
    for _ in range(rounds + 1):  # the first warms up
        for case, step in steps.items():
            begun = time.perf_counter()
            jax.block_until_ready(step(*given))
            seconds[case].append(time.perf_counter() - begun)
    for case, step in steps.items():
        took = statistics.median(seconds[case][1:]) * 1e3
        taken = step.memory_analysis().temp_size_in_bytes / MiB
        print(f"| {case[0]} | {case[1]} | {took:,.0f} | {taken:,.0f} |", flush=True)


def bound(length: int, window: int | None) -> float:
    """Returns the most that the blocks may take, as a multiple of the plain form."""
    if window and length >= WINDOWED[0]:
        return WINDOWED[1]
    return 1.0 if length >= FASTER_FROM else SLOWER


def jax_form(name: str, arrays: list[np.ndarray], window: int | None) -> Callable[[], Any]:
    """Returns a function that attends in a form of jaxtune; it is compiled beforehand."""
    import jax
    import jax.numpy as jnp

    from jaxtune.models.attention import attend
    from jaxtune.models.layout import arrange

    layout = arrange(arrays[0].shape[:2])
    how = dict(kind=jnp.int32(0), windows=(window,), scale=arrays[0].shape[-1] ** -0.5)

    def loss(q, k, v, weight):
        out = attend(q, k, v, layout, layout, **how, implementation=name)
        return (out * weight).sum(), out

    given = list(map(jnp.asarray, arrays))
    step = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True)).lower(*given).compile()
    return lambda: jax.block_until_ready(step(*given))


def torch_form(arrays: list[np.ndarray], window: int | None) -> Callable[[], Any]:
    """Returns a function that attends with torch's `scaled_dot_product_attention`."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    heads_first = [torch.from_numpy(each).transpose(1, 2).contiguous() for each in arrays]
    *given, weight = heads_first
    length = arrays[0].shape[1]
    masked: dict[str, Any] = dict(is_causal=True)
    if window:
        index = torch.arange(length)
        near = index[:, None] - index
        masked = dict(attn_mask=(near >= 0) & (near < window))

    def step():
        q, k, v = (each.detach().requires_grad_() for each in given)
        out = scaled_dot_product_attention(q, k, v, enable_gqa=True, **masked)
        (out * weight).sum().backward()
        return q.grad, k.grad, v.grad

    return step


def taken(form: Callable[[], Any]) -> int:
    """Returns the most bytes that a call takes above what the process held before it."""
    held = resident.begin()
    form()
    return resident.above(held)


if __name__ == "__main__":
    main()
