"""Plans the jobs at their models' true sizes, for devices that need not be at hand.

    pip install 'jax[tpu]' 'jax-cuda12-plugin[with-cuda]'
    python benchmarks/plans.py [--case NAME]

No weights are needed: each case stands on a checkpoint that has the names and shapes of the
published one and a hole for weights, and on rows as long as its config allows. The programs of the
run, its evaluations included, are compiled for the device, and the plan is that of
`launch.py plan`. Each job has the settings of its config in `configs/`, and must fit the device of
the people who do it. The table of 8B and 70B has one row of 2,048 packed tokens for each chip, and
what a chip holds of weights and optimiser must fall with the number of chips.
"""

import argparse
import datetime
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shapes import GEMMA_3_270M, LLAMA_3_3B, LLAMA_3_8B, LLAMA_3_70B, PALIGEMMA_3B
from stand_in import CONFIGS, on_stand_in

from jaxtune.display.errors import UserError
from jaxtune.runs.plan.chips import GiB
from jaxtune.runs.plan.targets import Target, compile_only, number, target

compile_only()

UNEVEN = 1.05  # most that a chip of N holds, as a multiple of 1/N of what one chip would hold
QLORA = {
    "batch.packing": True,
    "batch.accumulate": 1,
    "batch.max_length": 2048,
    "data.task": "",
    "trainable.targets": "all-linear",
    "trainable.rank": 16,
    "trainable.dropout": 0.0,
    "eval.split": "",
    "eval.rows": None,
}


@dataclass(frozen=True)
class Case:
    """A config for a device, or for one of several that are alike."""

    config: str
    shape: Mapping
    target: str
    split: bool = False  # whether it belongs to the table of weights over chips
    changes: Mapping[str, Any] = field(default_factory=dict)


def over_chips(shape: Mapping, name: str) -> Case:
    """Returns a case of the table: QLoRA with one packed row for each chip."""
    chips = number(name.partition(":")[2])
    changes = {**QLORA, "batch.rows": chips}
    return Case("price_llama31_8b.py", shape, name, split=True, changes=changes)


CASES = {
    "palette": Case("palette_gemma3_270m.py", GEMMA_3_270M, "t4"),
    "totto": Case("totto_gemma3_270m.py", GEMMA_3_270M, "rtx4050"),
    "paligemma": Case("paligemma_caption.py", PALIGEMMA_3B, "t4"),
    "price-3b": Case("price_llama32_3b.py", LLAMA_3_3B, "t4"),
    "price-8b": Case("price_llama31_8b.py", LLAMA_3_8B, "l4"),
    "8b-1": over_chips(LLAMA_3_8B, "v5e:1x1"),
    "8b-4": over_chips(LLAMA_3_8B, "v5e:2x2"),
    "8b-8": over_chips(LLAMA_3_8B, "v5e:2x4"),
    "8b-16": over_chips(LLAMA_3_8B, "v5e:4x4"),
    "70b-16": over_chips(LLAMA_3_70B, "v5e:4x4"),
    "70b-p8": over_chips(LLAMA_3_70B, "v5p:2x2x2"),
}


def main() -> None:
    """Plans the cases and prints what each takes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--case", choices=CASES, action="append", help="case to plan, repeatable (default: all)"
    )
    options = parser.parse_args()
    print(datetime.date.today())
    try:
        kept = [report(name, CASES[name]) for name in options.case or CASES]
    except UserError as problem:
        parser.error(str(problem))
    sys.exit(not all(kept))


def report(name: str, case: Case) -> bool:
    """Plans a case, prints the plan, and returns whether its bounds are kept."""
    from jaxtune.runs.plan import change, report
    from jaxtune.runs.plan.plan import overrides

    begun = time.perf_counter()
    chosen = target(case.target)
    with tempfile.TemporaryDirectory() as directory:
        planner = _planner(case, chosen, Path(directory))
        plan = planner.plan({})
        print(f"\n{name}: configs/{case.config}, for {chosen.title}", flush=True)
        print("\n".join(report.text(plan)))
        kept = plan.fits and (not case.split or _split(planner, case, Path(directory)))
        if not plan.fits and not case.split:
            found = change.to_fit(planner)
            print("it would fit with", " ".join(overrides(found[0])) if found else "nothing tried")
    seconds = time.perf_counter() - begun
    print(f"  {'kept' if kept else 'BROKEN'}, planned in {seconds:.0f} s", flush=True)
    return kept


def _planner(case: Case, chosen: Target, directory: Path) -> Any:
    """Returns the planner of a case on a stand-in of its model."""
    import contextlib

    from jaxtune.assembly.assemble import Assembly
    from jaxtune.config.load import load
    from jaxtune.display.progress import Quiet
    from jaxtune.runs.plan.plan import Planner
    from jaxtune.runs.rows import RunRows

    config = on_stand_in(load(CONFIGS / case.config), case.shape, directory, case.changes)
    today = datetime.date.today().isoformat()
    assembly = Assembly.of_headers(config, today, tuple(chosen.devices()))
    with contextlib.ExitStack() as stack:  # the planner opens loaders of its own
        rows = RunRows.read(assembly, Quiet(), stack)
    return Planner(assembly, rows, chosen, Quiet())


def _split(planner: Any, case: Case, directory: Path) -> bool:
    """Prints what a chip holds beside what one chip would hold; returns whether it is 1/N of it."""
    one = target(case.target.partition(":")[0])
    alone = _planner(case, one, directory).resident({"batch.rows": 1})
    held, chips = planner.resident({}), planner.target.count
    print(f"  weights, adapters and optimiser {held / GiB:.3f} GiB a chip; ", end="")
    print(f"one chip would hold {alone / GiB:.3f} GiB, a part of it {alone / chips / GiB:.3f}")
    return held <= UNEVEN * alone / chips


if __name__ == "__main__":
    main()
