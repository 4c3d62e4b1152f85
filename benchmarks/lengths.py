"""Reports how the memory of a training step grows with the tokens of a row, without the hardware.

    pip install 'jax[tpu]' 'jax-cuda12-plugin[with-cuda]'
    python benchmarks/lengths.py [--target a100-40 …] [--case gemma3-4b …] [--attention tokamax]

Steps of QLoRA, nf4 with r=16 on all linear maps, on one row of which every token is scored, are
compiled for one chip at their models' full sizes, as `compiled_memory.py` does. PaliGemma has 8
rows with one picture each. Where tokens double, temporaries may grow by 2.2 times. `--attention`
compiles another form of attention than the one that "auto" takes.

Temporaries are the heaps that XLA writes down: that in the chip's memory, and that in a TPU's
vector memory, where XLA keeps what fits it, so that a short step may take almost nothing of the
other. What libtpu calls the size of temporaries is not taken: it can exceed the peak of the whole
step, arguments included.
"""

import argparse
import datetime
import math
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compiled_memory import Case, step
from shapes import GEMMA_2_9B, GEMMA_3_1B, GEMMA_3_4B, GEMMA_3_270M, PALIGEMMA_3B

from jaxtune.display.errors import UserError
from jaxtune.runs.plan.chips import GiB, Gpu
from jaxtune.runs.plan.programs import TOO_MUCH, WITHOUT_TRITON
from jaxtune.runs.plan.targets import Target, compile_only, target

compile_only()

GROWTH = 2.2  # most that temporaries may grow by where tokens double
TARGETS = ("a100-40", "h100", "v5e", "t4")
TEXT = 128  # tokens beside a picture
# A heap in the buffers that XLA writes down, and where it lies by what XLA calls its color.
HEAP = re.compile(r"^allocation \d+: size (\d+)(?:, color (\d+))?, preallocated-temp", re.M)
MEMORY, VECTOR = "", "1"  # colors; what XLA keeps elsewhere is some kilobytes


def pictured(side: int) -> Mapping:
    """Returns the shape of PaliGemma for pictures of `side` pixels."""
    tokens = (side // 14) ** 2
    vision = PALIGEMMA_3B["vision_config"] | dict(image_size=side, num_image_tokens=tokens)
    text = PALIGEMMA_3B["text_config"] | dict(num_image_tokens=tokens)
    return PALIGEMMA_3B | dict(vision_config=vision, text_config=text)


@dataclass(frozen=True)
class Row:
    """A model, with the sizes of its steps."""

    shapes: Mapping[int, Mapping]  # config of the model by the tokens of a row
    rows: int = 1
    pictures: int = 0
    bounds: Mapping[int, float] = field(default_factory=dict)  # on temporaries, in GiB, by tokens
    peaks: Mapping[int, float] = field(default_factory=dict)  # on the peak, in GiB, by tokens

    def case(self, tokens: int, attention: str) -> Case:
        """Returns the step on rows of some tokens, with a form of attention."""
        return Case(
            title="",
            shape=self.shapes[tokens],
            rank=16,
            batch=(self.rows, tokens),
            scored=TEXT // 2 if self.pictures else tokens,
            bound=math.inf,
            quant="nf4",
            dropout=0.0,
            pictures=self.pictures,
            more=dict(attention=attention),
        )


def alike(shape: Mapping, *lengths: int) -> Mapping[int, Mapping]:
    """Returns one config for rows of several lengths."""
    return dict.fromkeys(lengths, shape)


CASES = {
    "gemma3-270m": Row(alike(GEMMA_3_270M, 2048, 8192, 32_768), bounds={8192: 0.6}),
    "gemma3-1b": Row(alike(GEMMA_3_1B, 2048, 8192, 32_768)),
    "gemma3-4b": Row(alike(GEMMA_3_4B, 2048, 8192, 32_768), peaks={32_768: 40}),
    "gemma2-9b": Row(alike(GEMMA_2_9B, 4096, 8192)),
    "paligemma": Row(
        {(side // 14) ** 2 + TEXT: pictured(side) for side in (448, 896)}, rows=8, pictures=1
    ),
}


def main() -> None:
    """Compiles the cases for the chips, and prints a table for each chip."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", action="append", help=f"default: {', '.join(TARGETS)}")
    parser.add_argument("--case", choices=CASES, action="append", help="default: all")
    parser.add_argument("--attention", default="auto", help="a value of model.attention")
    options = parser.parse_args()
    kept = []
    for name in options.target or TARGETS:
        try:
            chosen = target(name)
            [device, *_] = chosen.devices()
        except UserError as problem:
            parser.error(str(problem))
        print(f"\n{datetime.date.today()}, compiled for one {chosen.chip.title}, ", end="")
        print(f"attention {options.attention!r}")
        print("| model | tokens | temporaries | peak | growth for each doubling | |")
        print("| --- | --- | --- | --- | --- | --- |", flush=True)
        how = (device, chosen, options.attention)
        kept += [report(each, *how) for each in options.case or CASES]
    sys.exit(not all(kept))


def report(name: str, device: Any, chosen: Target, attention: str) -> bool:
    """Compiles a model's steps, prints a row for each, and returns whether all bounds are kept."""
    row, before, kept = CASES[name], None, True
    for tokens in row.shapes:
        begun = time.perf_counter()
        heaps, peak = compiled(row.case(tokens, attention), device, chosen)
        growth = more = ""
        if heaps is None:
            found, good = f"too large | {peak:.1f} GiB", peak <= row.peaks.get(tokens, math.inf)
        else:
            temporaries = sum(heaps.values())
            found = f"{temporaries:.2f} GiB | {peak:.2f} GiB"
            if VECTOR in heaps:
                more = f", {heaps[VECTOR]:.2f} GiB of it in vector memory"
            good = temporaries <= row.bounds.get(tokens, math.inf)
            good &= peak <= row.peaks.get(tokens, math.inf)
            if before:
                doublings = math.log2(tokens / before[0])
                each = (temporaries / before[1]) ** (1 / doublings)
                growth, good = f"{each:.2f}", good and each <= GROWTH
            before = (tokens, temporaries)
        print(f"| {name} | {row.rows} × {tokens:,} | {found} | {growth} | ", end="")
        print(f"{'kept' if good else 'BROKEN'}{more} |", flush=True)
        print(f"  compiled in {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
        kept &= good
    return kept


def compiled(case: Case, device: Any, chosen: Target) -> tuple[dict[str, float] | None, float]:
    """Returns the heaps of a step's temporaries by color, and its peak, in GiB.

    The heaps are None if it does not fit a TPU.
    """
    import jax

    from jaxtune import sharding

    mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), [device])
    lowered = step(case, mesh)
    options = dict(WITHOUT_TRITON if isinstance(chosen.chip, Gpu) else ())
    with tempfile.TemporaryDirectory() as dump:
        options |= dict(xla_dump_to=dump, xla_dump_hlo_as_text=True)
        try:
            used = lowered.compile(options).memory_analysis()
        except jax.errors.JaxRuntimeError as error:
            if refused := TOO_MUCH.search(str(error)):
                return None, float(refused[1]) / (1 if refused[2] == "G" else 1024)
            raise
        [file] = Path(dump).rglob("*compiled_step*after_optimizations-buffer-assignment.txt")
        heaps = {color: int(size) / GiB for size, color in HEAP.findall(file.read_text())}
    heaps = {color: size for color, size in heaps.items() if color in (MEMORY, VECTOR)}
    return heaps, used.peak_memory_in_bytes / GiB


if __name__ == "__main__":
    main()
