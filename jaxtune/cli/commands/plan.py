"""`plan`: reports what a run would take of its devices, without reading weights."""

import contextlib
import datetime
from argparse import ArgumentParser, Namespace

from jaxtune.cli.commands import UsageError, config_and_place, configured
from jaxtune.cli.options import count, filled
from jaxtune.display.escapes import show


def arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments to a parser."""
    configured(parser, "[--target NAME[:TOPOLOGY]] [--fit] [--rows N] [--verbose]")
    parser.add_argument(
        "--target",
        type=filled,
        metavar="NAME",
        help="chip to plan for, such as h100, h100:8 or v5e:2x4, which need not be at hand "
        "(default: the devices of this machine)",
    )
    parser.add_argument(
        "--fit", action="store_true", help="find the largest batch that fits, by compiling"
    )
    parser.add_argument(
        "--rows",
        type=count,
        metavar="N",
        help="read only the first N rows of the data (default: all)",
    )
    parser.add_argument("--verbose", action="store_true", help="list every trained leaf")
    parser.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Prints the plan and writes it to plan.json; returns 0 also for a run that does not fit."""
    config, workdir = config_and_place(options)
    from jaxtune.runs.plan import targets

    target = targets.target(options.target) if options.target else None
    if target:
        targets.compile_only()
    from jaxtune.assembly.assemble import Assembly
    from jaxtune.display.progress import Progress
    from jaxtune.files import write_json
    from jaxtune.runs import console, numerics
    from jaxtune.runs.plan import change, report
    from jaxtune.runs.plan.plan import Planner
    from jaxtune.runs.rows import RunRows
    from jaxtune.workdir.directory import claim

    target = target or targets.at_hand()
    if options.fit and target.limit_bytes is None:
        raise UsageError(
            f"--fit: {target.title} does not tell how much memory it has; name the chip with "
            "--target"
        )
    today, progress = datetime.date.today().isoformat(), Progress(verbose=options.verbose)
    assembly = Assembly.of_headers(config, today, tuple(target.devices()))
    with contextlib.ExitStack() as stack:
        rows = RunRows.read(assembly, progress, stack, limit=options.rows)
        planner = Planner(assembly, rows, target, progress)
        plan = planner.plan({})
        start, placer = plan.shapes.start, assembly.placer
        lines = [
            *report.sample_text(plan, rows, len(assembly.sources[0]), config.steps),
            *console.of_steps(config.batch, rows.loader, plan.total, placer),
            *console.of_training(config.seed, start, plan.shapes.optimizer, placer),
            *numerics.told(plan.shapes.model, assembly.mesh),
            *(console.leaf_table(start, placer) if options.verbose else []),
            *report.text(plan),
        ]
        for line in lines:
            progress.say(line)
        found = change.to_fit(planner) if plan.fits is False else None
        if plan.fits is False:
            show("\n".join(report.changes_text(found)))
        fit = change.largest_batch(planner) if options.fit else None
        if fit:
            show("\n".join(report.fit_text(fit, config.batch.rows)))
    claim(workdir)
    file = workdir / "plan.json"
    write_json(file, report.content(plan, rows, found, fit, options.rows))
    show(f"written to {file}")
    return 0
