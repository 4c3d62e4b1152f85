"""Compares the plan of a run with the memory that its programs then take of the devices at hand.

    python benchmarks/plan_accuracy.py [--case NAME]

Each case is a run of its own process. It plans itself from a checkpoint without weights, which
compiles its programs. Then zeros of the shapes of its weights, adapters and optimiser are placed
where the run places them, and the run's own loop is followed: training steps on the longest rows,
the held-out loss, and answers where the config asks for them.

On a GPU or TPU, what is taken is the allocator's own peak. A CPU has no such allocator: there it is
the highest resident size of the process (VmHWM), which is reset after the programs are compiled and
their temporary memory is given back to the system, less the resident size at that moment. So it
holds arrays, temporaries and what the allocator of the C library keeps, and neither the compiler
nor the libraries. It is read on Linux only.
"""

import argparse
import contextlib
import datetime
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import resident
from shapes import GEMMA_3_270M, PALIGEMMA_3B, cpu

MiB = 2**20
BOUNDS = {"cpu": 0.15}  # largest error of the plan, by platform
BOUND = 0.05  # where the devices' allocator tells what it holds
STEPS = 3

LAYERS = 4
GEMMA = GEMMA_3_270M | dict(
    vocab_size=65_536,
    num_hidden_layers=LAYERS,
    layer_types=(["sliding_attention"] * (LAYERS - 1) + ["full_attention"]),
)
PALIGEMMA = PALIGEMMA_3B | dict(
    image_token_index=16_383,
    text_config=PALIGEMMA_3B["text_config"]
    | dict(vocab_size=16_384, num_hidden_layers=3, intermediate_size=8192),
    vision_config=PALIGEMMA_3B["vision_config"] | dict(num_hidden_layers=4),
)
LORA = dict(
    model=dict(dtype="float32"),
    trainable=dict(rank=16, alpha=32, dropout=0.05),
    optim=dict(lr=1e-4),
    batch=dict(rows=8, max_length=512),
)


@dataclass(frozen=True)
class Case:
    """A run, whose sections replace those of `LORA`."""

    shape: Mapping
    sections: Mapping = field(default_factory=dict)


CASES = {
    "lora": Case(GEMMA, dict(model=dict(dtype="float32", remat="dots"))),
    "qlora": Case(GEMMA, dict(model=dict(dtype="float32", quant="nf4-double"))),
    "full": Case(GEMMA, dict(trainable=dict(kind="full"))),
    "packed": Case(GEMMA, dict(batch=dict(rows=8, accumulate=2, max_length=1024, packing=True))),
    "pictures": Case(
        PALIGEMMA,
        dict(
            model=dict(dtype="float16"),
            trainable=dict(kind="attention"),
            optim=dict(name="sgd", lr=0.03, clip_norm=None),
            batch=dict(rows=8, max_length=256 + 64, weighting="example"),
            data=dict(task="caption"),
        ),
    ),
    "decode": Case(
        GEMMA | dict(num_key_value_heads=4),
        dict(
            batch=dict(rows=2, max_length=512),
            eval=dict(holdout=64, answers=32),
            generate=dict(batch=32, max_new_tokens=512),
        ),
    ),
}


def main() -> None:
    """Runs the cases in processes of their own, and prints their plans beside what they took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--case", choices=CASES, action="append", help="case to run, repeatable (default: all)"
    )
    parser.add_argument("--child", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measured(CASES[options.child])))
        return
    print(f"{datetime.date.today()}, {cpu()}\n")
    print("case      planned     taken   error  bound         largest program")
    kept = [report(name) for name in options.case or CASES]
    sys.exit(not all(kept))


def report(name: str) -> bool:
    """Runs a case, prints its row, and returns whether the plan's error is within its bound."""
    command = [sys.executable, __file__, "--child", name]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    planned, taken = found["planned"], found["taken"]
    error, bound = planned / taken - 1, BOUNDS.get(found["platform"], BOUND)
    kept = abs(error) <= bound
    print(f"{name:8}  {planned / MiB:5,.0f} MiB {taken / MiB:5,.0f} MiB  {error:+6.1%}  ", end="")
    print(f"{bound:5.0%} {'kept' if kept else 'BROKEN':>7}  {found['program']}", flush=True)
    return kept


def measured(case: Case) -> dict[str, Any]:
    """Plans a run, runs its programs, and returns the plan's peak and what was taken, in bytes."""
    import jax
    from stand_in import on_stand_in

    from jaxtune.assembly.assemble import Assembly
    from jaxtune.config.load import parse
    from jaxtune.display.progress import Quiet
    from jaxtune.runs.plan.plan import Planner
    from jaxtune.runs.plan.targets import at_hand
    from jaxtune.runs.rows import RunRows

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        directory = Path(folder)
        values = {**LORA, "data": {}, **case.sections}
        values["model"] = {**values["model"], "path": "stand-in"}
        values["data"] = {**values["data"], "source": "stand-in"}
        config = on_stand_in(parse(values), case.shape, directory, {})
        assembly = Assembly.of_headers(config, datetime.date.today().isoformat())
        rows = RunRows.read(assembly, Quiet(), stack)
        plan = Planner(assembly, rows, at_hand(), Quiet()).plan({})
        next(iter(rows.loader))  # imports what reads rows: TensorFlow, for pictures
        begin, taken = _meter(jax.local_devices()[0])
        begin()
        _run(assembly, rows, plan, directory)
        return {
            "planned": plan.peak_bytes,
            "taken": taken(),
            "program": plan.largest.name,
            "platform": jax.default_backend(),
        }


def _run(assembly: Any, rows: Any, plan: Any, directory: Path) -> None:
    """Places zeros of the shapes of a run's arrays, and runs its programs as its loop does."""
    from jaxtune.display.progress import Quiet
    from jaxtune.evaluation import held_out
    from jaxtune.runs.plan.ahead import zeros
    from jaxtune.training.step import train_step

    model, placer, start = plan.shapes.model, assembly.placer, plan.shapes.start
    state, frozen = zeros((start.shapes, start.frozen))
    hyper = {name: leaf + plan.shapes.optimizer.hyper[name] for name, leaf in state.hyper.items()}
    state = state.replace(frozen=frozen, hyper=hyper)  # of zeros, Adam would make NaN
    for step in _longest(rows, plan):
        batch = placer(step.batch, parts=True)
        state, metrics = train_step(model, plan.shapes.optimizer, state, batch)
        float(metrics["loss"])
    if rows.evaluator:
        held_out.means(model, state.variables, rows.evaluator, placer)
    if rows.answered:
        generator = assembly.generator(model, state.variables)
        held_out.evaluate(
            generator, rows.answered, assembly.task, assembly.metrics, directory, Quiet()
        )


def _longest(rows: Any, plan: Any) -> Iterator[Any]:
    """Yields the run's first steps whose batches have a largest shape, which the plan compiled."""
    largest = {shape[:2] for shape in plan.outlook.largest}

    def sizes(batch: Any) -> tuple[int, int]:
        return batch.tokens.shape[-1], batch.where.shape[-1]

    found = (step for step in rows.loader if sizes(step.batch) in largest)
    for _, step in zip(range(STEPS), found, strict=False):
        yield step


def _meter(device: Any) -> tuple[Any, Any]:
    """Returns functions: one to begin with, and one for the most bytes taken since."""
    if device.memory_stats():
        before = device.memory_stats()["bytes_in_use"]
        return gc.collect, lambda: device.memory_stats()["peak_bytes_in_use"] - before
    held = []
    return lambda: held.append(resident.begin()), lambda: resident.above(held[0])


if __name__ == "__main__":
    main()
