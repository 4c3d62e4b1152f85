"""How many runs fit the devices at once, as members of one population."""

from dataclasses import dataclass

from jaxtune.assembly.assemble import Assembly
from jaxtune.data import batches
from jaxtune.runs.plan import programs
from jaxtune.runs.plan.programs import Program, Shapes
from jaxtune.runs.plan.targets import Target
from jaxtune.runs.rows import RunRows


@dataclass(frozen=True)
class Members:
    """A population that fits, or a single run.

    Attributes:
      count: Number of members.
      peak_bytes: Highest memory of a device.
      seconds: Time that it took to compile the population's step.
    """

    count: int
    peak_bytes: int
    seconds: float


def members(
    assembly: Assembly, rows: RunRows, target: Target, most: int, own: bool = False
) -> Members:
    """Returns the largest population of runs like one that fits the devices.

    The programs of a population that is run later are compiled once for both.

    Args:
      assembly: The parts of a run whose adapters have the highest rank.
      rows: Its rows.
      target: The devices.
      most: Highest number of members.
      own: Whether each member has batches of its own.
    """
    shapes = Shapes.of(assembly, assembly.total_steps(rows.loader))
    found = _compiled(assembly, rows, shapes, most, own)
    if target.limit_bytes is None or found.peak_bytes <= target.limit_bytes:
        return found
    least = _compiled(assembly, rows, shapes, 1, own)
    each = max(1, (found.peak_bytes - least.peak_bytes) / (most - 1)) if most > 1 else 1
    count = 1 + int((target.limit_bytes - least.peak_bytes) / each)
    for fewer in range(min(most - 1, count), 1, -1):
        found = _compiled(assembly, rows, shapes, fewer, own)
        if found.peak_bytes <= target.limit_bytes:
            return found
    return least


def _compiled(assembly: Assembly, rows: RunRows, shapes: Shapes, count: int, own: bool) -> Members:
    """Compiles the programs of a population for their largest batches."""
    found: list[Program] = []
    total = assembly.total_steps(rows.loader)
    for shape in rows.loader.outlook(0, total).largest:
        batch = rows.loader.blank(shape)
        if own:
            batch = batches.stacked([batch] * count)
        described = assembly.placer.described(batch, parts=True, members=own)
        found.append(programs.train_together(shapes, described, count, own))
    seconds = sum(each.seconds for each in found)
    if rows.evaluator:
        for shape in rows.evaluator.outlook(0, rows.evaluator.steps).largest:
            batch = assembly.placer.described(rows.evaluator.blank(shape), parts=False)
            found.append(programs.evaluate_together(shapes, batch, count))
    return Members(count, max(each.peak_bytes for each in found), seconds)
