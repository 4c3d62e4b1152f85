"""Finds what to change so that a run fits its devices, and the largest batch that fits."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from jaxtune.assembly.placer import ways
from jaxtune.config.schema import Config
from jaxtune.config.training_sections import MANY
from jaxtune.display.errors import UserError
from jaxtune.runs.plan.plan import Changes, Plan, Planner, overrides
from jaxtune.sharding import divisors

PARTS = "batch.accumulate"
HOST: Changes = {"model.embedding": "host"}
QUANT = ("int8", "nf4", "nf4-double")  # of a base, each smaller than the one before
STRAIGHT = 6  # numbers of rows that are guessed as if memory grew in proportion to them


@dataclass(frozen=True)
class Fit:
    """The largest batch that fits.

    Attributes:
      rows: Most rows at once that fit; 0 if not even the fewest do.
      plan: The plan for these rows; None if there are none.
      largest: Changes to train with that many rows in each step, at once.
      same: Changes to keep the config's rows in each step, in the fewest micro-batches.
    """

    rows: int
    plan: Plan | None
    largest: Changes
    same: Changes


def to_fit(planner: Planner) -> tuple[Changes, Plan] | None:
    """Returns the smallest changes found with which a run fits, and its plan; None if none do.

    Changes are tried in the order of what they cost in speed, each on top of those before it: more
    micro-batches, weights split over the devices instead of copied, the embedding on the host, an
    optimiser whose state has 8 bits, recomputed activations, and a base in 8 or 4 bits. Of the
    changes that together suffice, those without which the run fits as well are taken back.
    """
    made: list[Changes] = []
    for change in _ladder(planner):
        made = [each for each in made if each.keys() != change.keys()] + [change]
        found = _tried(planner, _together(made))
        if found and found.fits:
            return _fewest(planner, made)
    return None


def _together(made: Sequence[Changes]) -> Changes:
    return {key: value for change in made for key, value in change.items()}


def _ladder(planner: Planner) -> Iterator[Changes]:
    """Yields changes, those that cost least speed first."""
    config, mesh = planner.assembly.config, planner.assembly.mesh
    if parts := _more_parts(config, ways(mesh)):
        yield {PARTS: parts[-1]}
    if mesh.shape["data"] > 1:
        yield {"mesh.data": 1, "mesh.fsdp": ways(mesh)}
    if config.model.embedding == "device" and _possible(planner, HOST):
        yield HOST
    if config.optim.name == "adamw":
        yield {"optim.name": "adamw8bit"}
    if config.model.remat == "none":
        yield {"model.remat": "dots"}
    if config.model.remat in ("none", "dots"):
        yield {"model.remat": "full"}
    if config.model.remat != "offload":
        yield {"model.remat": "offload"}
    if config.trainable.kind == "lora" and config.model.quant in (None, *QUANT):
        smaller = QUANT.index(config.model.quant) + 1 if config.model.quant else 0
        yield from ({"model.quant": kind} for kind in QUANT[smaller:])


def _possible(planner: Planner, changes: Changes) -> bool:
    """Returns whether a config with these changes can be trained, wherever it fits."""
    try:
        planner.resident(changes)
    except UserError:
        return False
    return True


def _more_parts(config: Config, among: int) -> list[int]:
    """Returns larger numbers of micro-batches that divide the rows, in ascending order."""
    rows = config.batch.rows
    parts = (each for each in divisors(rows) if each > config.batch.accumulate)
    return [each for each in parts if rows // each % among == 0]


def _tried(planner: Planner, changes: Changes) -> Plan | None:
    """Returns the plan of some changes; None if they are impossible or surely do not fit."""
    planner.progress.draw(f"trying {' '.join(overrides(changes))}")
    try:
        if planner.resident(changes) > planner.target.limit_bytes:
            return None
        return planner.plan(changes)
    except UserError:  # such as a checkpoint that is stored quantised already
        return None


def _fewest(planner: Planner, made: list[Changes]) -> tuple[Changes, Plan]:
    """Drops changes without which a run fits as well, and lowers the number of micro-batches."""
    for change in list(made):
        fewer = [each for each in made if each is not change]
        found = _tried(planner, _together(fewer)) if fewer else None
        if found and found.fits:
            made = fewer
    changes = _together(made)
    if PARTS in changes:
        parts = _more_parts(planner.assembly.config, ways(planner.assembly.mesh))

        def fits(place: int) -> bool:
            found = _tried(planner, {**changes, PARTS: parts[place]})
            return bool(found and found.fits)

        changes = {**changes, PARTS: parts[_first(fits, len(parts) - 1)]}
    return changes, planner.plan(changes)


def _first(fits: Callable[[int], bool], last: int) -> int:
    """Returns the smallest number up to `last` that fits, where `last` does, by bisection."""
    low, high = 0, last
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return high


def largest_batch(planner: Planner) -> Fit:
    """Returns the most rows of a micro-batch that fit, found by compiling for some numbers.

    The rows of a step are taken at once, without micro-batches; there are no more of them than the
    run has lines. The first number tried beyond the config's is the one at which memory would be
    full if it grew in proportion to the rows; after some such guesses, the range is halved.
    """
    mesh, lines = planner.assembly.mesh, len(planner.rows.loader.lines)
    unit = ways(mesh)
    most = min(-(-lines // unit), MANY // unit)

    def peak(units: int) -> Plan | None:
        return _tried(planner, {"batch.rows": units * unit, PARTS: 1})

    units, best = _most_units(peak, planner.target.limit_bytes, most)
    rows = units * unit
    if not rows:
        return Fit(0, None, {}, {})
    batch = planner.assembly.config.batch
    parts = [each for each in divisors(batch.rows) if batch.rows // each % unit == 0]
    enough = [each for each in parts if batch.rows // each <= rows]
    largest = {"batch.rows": rows, PARTS: 1}
    return Fit(rows, best, largest, {PARTS: enough[0]} if enough else {})


def _most_units(
    planned: Callable[[int], Plan | None], limit: int, most: int
) -> tuple[int, Plan | None]:
    """Returns the largest number from 1 to `most` whose plan fits, and the plan; 0 if none does."""
    low, high = 0, most + 1  # fits, and does not
    best, points = None, []
    trial = 1
    while high - low > 1:
        found = planned(trial)
        if found is not None and found.fits:
            low, best = trial, found
        else:
            high = trial
        if found is not None:
            points.append((trial, found.peak_bytes))
        straight = len(points) <= STRAIGHT
        trial = _next(points[-2:], limit, low, high) if straight else (low + high) // 2
    return low, best


def _next(points: list[tuple[int, int]], limit: int, low: int, high: int) -> int:
    """Returns the number to try next: where a line through two points meets the limit."""
    guess = low * 2 or 1
    if len(points) == 2 and points[0][0] != points[1][0]:
        (x, y), (further, there) = sorted(points)
        slope = (there - y) / (further - x)
        guess = int(x + (limit - y) / slope) if slope > 0 else (low + high) // 2
    return min(max(guess, low + 1), high - 1)
