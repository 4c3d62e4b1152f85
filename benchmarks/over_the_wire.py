"""Reports the bytes that each chip of a TPU slice sends in a training step, without the hardware.

    pip install 'jax[tpu]'
    python benchmarks/over_the_wire.py [--largest 12]

The step is that of Llama 3.1 8B QLoRA: nf4 with double quantisation, LoRA r=16 on all linear maps,
8 rows of 2048 packed tokens, every token scored, on a v5e 2x4 slice with its weights sharded over
all eight chips. Nothing is run: bytes are read from the program that the TPU's compiler makes, with
loops multiplied out, as `jaxtune/runs/plan/traffic.py` describes.
"""

import argparse
import datetime
import sys
import time

from compiled_memory import Case, GiB, step
from shapes import LLAMA_3_8B

# Of commit e5bb6b0, measured by this program on 2026-11-27: 40.0 GiB of dequantised weights in
# collective permutes, and 13.8 GiB of logits in all-reduces.
FORMER = 58_006_543_992
BOUND = FORMER // 3
TARGET = "v5e:2x4"
CASE = Case(
    "Llama 3.1 8B, nf4 with double quantisation, LoRA r=16 all-linear, 8 × 2048 packed, "
    "every token scored, fsdp 8",
    LLAMA_3_8B,
    rank=16,
    batch=(8, 2048),
    scored=2048,
    bound=16,
    packed=True,
    dropout=0.0,
)


def main() -> None:
    """Compiles the step, and prints its bytes by kind and its largest collectives."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--largest", type=int, default=12, help="collectives to list")
    options = parser.parse_args()

    from jaxtune import sharding
    from jaxtune.display.errors import UserError
    from jaxtune.runs.plan.targets import target

    try:
        chips = target(TARGET).devices()
    except UserError as problem:
        sys.exit(str(problem))

    begun = time.perf_counter()
    mesh = sharding.make_mesh({"data": 1, "fsdp": len(chips), "tensor": 1}, chips)
    compiled = step(CASE, mesh).compile()
    seconds = time.perf_counter() - begun
    print(f"{datetime.date.today()}, compiled for {TARGET} in {seconds:.0f} s\n{CASE.title}")
    sys.exit(not report(compiled, options.largest))


def report(compiled, largest: int) -> bool:
    """Prints what a compiled step sends and holds; returns whether it sends at most `BOUND`."""
    from jaxtune.runs.plan import traffic

    used = compiled.memory_analysis()
    sizes = (used.argument_size_in_bytes, used.temp_size_in_bytes, used.peak_memory_in_bytes)
    print(
        "  arguments {:.2f} GiB, temporaries {:.2f} GiB, peak {:.2f} GiB a chip".format(
            *(size / GiB for size in sizes)
        )
    )
    found = traffic.measure(compiled.as_text())
    for kind, sent in found.by_kind.items():
        print(f"  {sent / GiB:8.3f} GiB  {kind}")
    print("the largest:")
    for each in found.collectives[:largest]:
        print(f"  {each.total / GiB:8.3f} GiB  {each.kind} × {each.times}  {each.shape}")
        print(f"                {each.place}")
    for each in found.unknown:
        print(f"  the executions of {each.name} ({each.shape}) are unknown: {each.place}")
    kept = found.total <= BOUND and not found.unknown
    print(
        f"  {found.total / GiB:.2f} GiB a chip and step, formerly {FORMER / GiB:.2f}, "
        f"limit {BOUND / GiB:.2f}: {'kept' if kept else 'BROKEN'}"
    )
    return kept


if __name__ == "__main__":
    main()
