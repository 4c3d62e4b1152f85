"""A dry run of a sweep: its trials, what they share, and what they would take."""

import contextlib
import datetime
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxtune.assembly.assemble import Assembly
from jaxtune.config.fields import ConfigError
from jaxtune.config.schema import Config
from jaxtune.display.columns import grid, labelled, size_text
from jaxtune.display.escapes import plural
from jaxtune.display.progress import Progress, Quiet, duration
from jaxtune.files import write_json
from jaxtune.runs.plan import targets
from jaxtune.runs.plan.members import Members, members
from jaxtune.runs.plan.plan import Plan, plan
from jaxtune.runs.rows import RunRows
from jaxtune.runs.sweep.space import Dimension, Overrides, Range, text
from jaxtune.runs.sweep.spec import TOGETHER, Spec
from jaxtune.runs.sweep.variants import Group, bases, groups, overridden
from jaxtune.workdir.directory import claim

PLAN = "sweep_plan.json"
SHOWN, PLANNED = 24, 8  # trials that are listed, and groups of trials that are planned


def dry_run(spec: Spec, workdir: Path, progress: Progress, together: int = TOGETHER) -> None:
    """Prints the trials of a sweep, what they share and what they take; trains nothing.

    `together` is the most trials that train together.

    Without a grid, which trials there will be depends on results: as many are drawn at random. The
    plan is written to sweep_plan.json.
    """
    trials = _trials(spec)
    valid, refused = _configs(spec, trials)
    for line in _listed(spec, trials, refused):
        progress.say(line)
    found = groups(list(valid.values()), together > 1)
    numbers = list(valid)
    for line in _shared(valid, found):
        progress.say(line)
    planned = [_planned(group, numbers, together, progress) for group in found[:PLANNED]]
    for line in _table(planned, len(found)):
        progress.say(line)
    claim(workdir)
    content = {"trials": trials, "refused": refused, "groups": planned, **spec.described}
    write_json(workdir / PLAN, content)
    progress.say(f"written to {workdir / PLAN}")


def _trials(spec: Spec) -> list[Overrides]:
    if spec.sampler == "grid":
        return spec.space.points
    draw = random.Random(spec.seed)
    return [spec.space.choose(lambda each: _drawn(each, draw)) for _ in range(spec.trials)]


def _drawn(dimension: Dimension, draw: random.Random) -> Any:
    values = dimension.values
    if not isinstance(values, Range):
        return draw.choice(values)
    if values.log:
        value = values.low * (values.high / values.low) ** draw.random()
    else:
        value = draw.uniform(values.low, values.high)
    return round(value) if values.whole else value


def _configs(spec: Spec, trials: Sequence[Overrides]) -> tuple[dict[int, Config], dict[int, str]]:
    """Returns the configs by trial, and the errors of overrides that cannot be combined."""
    valid, refused = {}, {}
    for number, overrides in enumerate(trials):
        try:
            valid[number] = overridden(spec.config, overrides)
        except ConfigError as error:
            refused[number] = str(error)
    return valid, refused


def _listed(spec: Spec, trials: Sequence[Overrides], refused: dict[int, str]) -> Iterator[str]:
    grid_of_all = spec.sampler == "grid"
    yield f"{plural(len(trials), 'trial')} by {spec.sampler}" + (
        ":" if grid_of_all else ", such as these, drawn at random:"
    )
    for number, overrides in enumerate(trials[:SHOWN]):
        yield f"  {number:>4}  {text(overrides)}"
    if len(trials) > SHOWN:
        yield f"  and {len(trials) - SHOWN:,} more"
    if not grid_of_all:
        yield "from:"
        for each in spec.space.dimensions:
            yield f"  {each.key}: {each}"
    for number, reason in list(refused.items())[:SHOWN]:
        yield f"trial {number} would fail: {reason}"
    yield ""


def _shared(valid: dict[int, Config], found: Sequence[Group]) -> list[str]:
    loads = bases(list(valid.values()))
    return labelled(
        {
            "base": f"loaded {plural(loads, 'time')} by one worker, "
            f"for {plural(len(valid), 'trial')}",
            "programs": f"{plural(len(found), 'set')} to compile; the trials of a set differ only "
            "in numbers that the programs take as arrays, and in the rank",
        }
    )


def _planned(group: Group, numbers: Sequence[int], most: int, progress: Progress) -> dict[str, Any]:
    """Returns what the trials of a group take, as JSON."""
    progress.draw(f"planning trial {numbers[group.trials[0]]}")
    target, today = targets.at_hand(), datetime.date.today().isoformat()
    assembly = Assembly.of_headers(group.config, today, tuple(target.devices()))
    with contextlib.ExitStack() as stack:
        rows = RunRows.read(assembly, Quiet(), stack)
        found = plan(assembly, rows, target, Quiet())
        population = Members(1, found.peak_bytes, 0.0)
        if group.together:
            several = min(most, len(group.trials))
            population = members(assembly, rows, target, several, group.seeds)
    return {
        "trials": [numbers[each] for each in group.trials],
        "together": population.count,
        "together_bytes": population.peak_bytes,
        "peak_bytes": found.peak_bytes,
        "limit_bytes": target.limit_bytes,
        "fits": found.fits,
        "steps": found.total,
        "compile_seconds": sum(each.seconds for each in found.programs),
        "least_seconds": _least(found),
    }


def _least(found: Plan) -> float | None:
    """Returns a lower bound on the training time of a trial, or None for an unknown chip."""
    steps = [each for each in found.programs if each.name == "train"]
    each = found.seconds(max(steps, key=lambda program: program.flops))
    return None if each is None else each * found.total


def _table(planned: Sequence[dict[str, Any]], whole: int) -> Iterator[str]:
    yield ""
    rows = [
        {
            "trials": _numbers(each["trials"]),
            "steps": f"{each['steps']:,}",
            "peak": size_text(each["peak_bytes"]),
            "together": f"{each['together']:,}",
            "peak together": size_text(each["together_bytes"]),
            "fits": {True: "yes", False: "NO", None: "unknown"}[each["fits"]],
            "to compile": duration(each["compile_seconds"]),
            "a trial at least": _time(each["least_seconds"]),
            "all at least": _time(each["least_seconds"], len(each["trials"])),
        }
        for each in planned
    ]
    columns = list(rows[0]) if rows else []
    yield from grid(columns, rows, columns[1:])
    if whole > len(planned):
        yield f"and {whole - len(planned):,} more sets, which are not planned"


def _numbers(trials: Sequence[int]) -> str:
    more = f" and {len(trials) - 6} more" if len(trials) > 6 else ""
    return ", ".join(map(str, trials[:6])) + more


def _time(seconds: float | None, times: int = 1) -> str:
    return "unknown" if seconds is None else duration(seconds * times)
