"""Writes a plan as text for the terminal, and as the content of plan.json."""

from collections.abc import Mapping
from typing import Any

from jaxtune.assembly.state import parameters
from jaxtune.display.columns import grid, labelled, size_text
from jaxtune.display.escapes import plural
from jaxtune.runs.plan.change import Fit
from jaxtune.runs.plan.plan import Changes, Plan, overrides
from jaxtune.runs.plan.programs import Program
from jaxtune.runs.rows import RunRows
from jaxtune.tree import flatten

Found = tuple[Changes, Plan] | None  # changes with which the run fits
# What a program does.
WORK = {
    "train": "training step",
    "evaluate": "held-out loss",
    "prefill": "answers: prompts",
    "decode": "answers: decoding",
}
ITEMS = ("base", "trained", "optimiser", "gradients", "cache", "batch", "activations")


def sample_text(plan: Plan, rows: RunRows, whole: int, steps: int | None) -> list[str]:
    """Returns a line on how much of the data was read, empty if all of it was.

    `whole` is the number of rows in the source, and `steps` that of the config, if it sets it.
    """
    read = len(rows.train.source)
    if read == whole:
        return []
    told = "" if steps else f"; all rows make about {round(plan.total * whole / read):,} steps"
    return labelled({"sample": f"the first {read:,} of {whole:,} rows{told}"})


def text(plan: Plan) -> list[str]:
    """Returns the lines of a plan: its batches, the memory of each program, and whether it fits."""
    steps = len(plan.outlook.shapes)
    lines = {
        "padding": f"{plan.outlook.padding:.0%} of the positions",
        "programs": f"{plan.count} to compile, of which {plural(steps, 'size')} of training steps",
    }
    names = [name for name in ITEMS if any(name in each.items for each in plan.programs)]
    columns = ["program", *names, "peak"]
    table = [
        {"program": _title(each)}
        | {name: size_text(each.items[name]) for name in names if name in each.items}
        | {"peak": size_text(each.peak_bytes)}
        for each in plan.programs
    ]
    work = [_work(plan, each) for each in plan.programs]
    order = ["program", "TFLOP", "sent", "at least"]
    return [
        *labelled(lines),
        "",
        "memory of a device:",
        *grid(columns, table, [*names, "peak"]),
        "",
        "work of a device each time; the time is a lower bound from published rates:",
        *grid(order, work, order[1:]),
        "",
        *labelled({"fits" if plan.fits else "memory": verdict(plan)}),
    ]


def brief(plan: Plan) -> list[str]:
    """Returns the lines on a plan that a run prints before it reads weights."""
    return labelled({"peak": f"{verdict(plan)}: {_items(plan)}"})


def refusal(plan: Plan, found: Found) -> str:
    """Returns the message that a run does not fit, with the changes that would make it fit."""
    most, limit = size_text(plan.peak_bytes), size_text(plan.target.limit_bytes)
    problem = (
        f"this run does not fit: to {plan.largest.name}, a device would need {most} "
        f"({_items(plan)}), and a run may take {limit} on {_device(plan)}"
    )
    return "\n".join([problem, *changes_text(found)])


def _items(plan: Plan) -> str:
    """Returns the items of the highest peak."""
    items = plan.largest.items.items()
    return ", ".join(f"{name} {size_text(size)}" for name, size in items if size)


def verdict(plan: Plan) -> str:
    """Returns a sentence that says whether the run fits, and by how much."""
    peak, limit = size_text(plan.peak_bytes), plan.target.limit_bytes
    if limit is None:
        return f"{peak} of a device; {plan.target.title} does not tell how much it has"
    share = f"{peak}, {plan.peak_bytes / limit:.0%} of the {size_text(limit)} that a run may take"
    return f"{share} on {_device(plan)}" + ("" if plan.fits else ": it does NOT fit")


def _device(plan: Plan) -> str:
    title = plan.target.title
    return title if plan.target.count == 1 else f"each of {title}"


def _title(program: Program) -> str:
    """Returns what a program does, and for which batch."""
    sizes = program.sizes
    parts = sizes.get("micro-batches", 1)
    batch = (f"{parts} × " if parts > 1 else "") + f"{sizes['rows']} × {sizes['tokens']:,}"
    return f"{WORK[program.name]}, {batch}" + (f" + {sizes['new']:,}" if "new" in sizes else "")


def _work(plan: Plan, program: Program) -> dict[str, str]:
    seconds, sent = plan.seconds(program), sum(program.sent.values())
    return {
        "program": _title(program),
        "TFLOP": f"{program.flops / 1e12:,.3g}",
        "sent": size_text(sent) if sent else "-",
        "at least": "unknown" if seconds is None else f"{seconds:.3g} s",
    }


def changes_text(found: Found) -> list[str]:
    """Returns lines that say which changes would make a run fit."""
    if found is None:
        return [
            "no change of micro-batches, optimiser, recomputation or quantisation makes it fit: "
            "reduce batch.max_length or trainable.rank, or use more devices"
        ]
    changes, then = found
    return [
        f"with these changes it takes {size_text(then.peak_bytes)} and fits:",
        f"  {' '.join(overrides(changes))}",
    ]


def fit_text(fit: Fit, rows: int) -> list[str]:
    """Returns lines with the largest batch that fits; `rows` are those of the config's batch."""
    if not fit.rows:
        return ["no batch fits, not even of the fewest rows that the devices can share"]
    lines = [
        f"the largest batch that fits has {plural(fit.rows, 'row')} at once, "
        f"in {size_text(fit.plan.peak_bytes)}:",
        f"  {' '.join(overrides(fit.largest))}",
    ]
    if fit.same:
        lines += [f"for the config's {plural(rows, 'row')} in each step:"]
        lines += [f"  {' '.join(overrides(fit.same))}"]
    return lines


def content(
    plan: Plan, rows: RunRows, found: Found, fit: Fit | None, sample: int | None
) -> dict[str, Any]:
    """Returns the content of plan.json; `sample` is the limit on the rows that were read."""
    train, start = rows.train.survey, plan.shapes.start
    trained = parameters(start.selected)
    return {
        "target": plan.target.name or plan.target.title,
        "devices": plan.target.count,
        "limit_bytes": plan.target.limit_bytes,
        "peak_bytes": plan.peak_bytes,
        "fits": plan.fits,
        "programs": [_program(plan, each) for each in plan.programs],
        "programs_to_compile": plan.count,
        "sample": sample,
        "rows": len(train.rows),
        "steps": plan.total,
        "steps_per_epoch": rows.loader.steps_per_epoch,
        "tokens": train.tokens,
        "scored_share": train.share,
        "padding_share": plan.outlook.padding,
        "trains": {
            "parameters": trained,
            "of": trained + parameters(start.frozen),
            "leaves": {path: list(leaf.shape) for path, leaf in flatten(start.selected).items()},
        },
        "changes": None if found is None else _changes(*found),
        "fit": fit and {
            "rows": fit.rows,
            "peak_bytes": fit.plan and fit.plan.peak_bytes,
            "overrides": overrides(fit.largest),
            "same_rows": overrides(fit.same),
        },
    }  # fmt: skip


def _program(plan: Plan, program: Program) -> dict[str, Any]:
    return {
        "name": program.name,
        "sizes": dict(program.sizes),
        "peak_bytes": program.peak_bytes,
        "items": dict(program.items),
        "flops": program.flops,
        "sent_bytes": dict(program.sent),
        "least_seconds": plan.seconds(program),
        "compile_seconds": program.seconds,
        "compiled": program.outputs is not None,
    }


def _changes(changes: Changes, then: Plan) -> Mapping[str, Any]:
    return {"overrides": overrides(changes), "peak_bytes": then.peak_bytes}
