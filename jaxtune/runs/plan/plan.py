"""Plans a run, or changes of it: compiles its programs and compares them with a device's memory."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from jaxtune.assembly.assemble import Assembly
from jaxtune.config.load import parse, resolved
from jaxtune.config.run_sections import Generate
from jaxtune.config.schema import Config
from jaxtune.data.loader import Outlook
from jaxtune.decoding import outline
from jaxtune.decoding.sampling import Sampling
from jaxtune.decoding.text import sampling_options
from jaxtune.display.progress import Progress
from jaxtune.models.programs import rule
from jaxtune.runs.plan import programs
from jaxtune.runs.plan.programs import Program, Shapes
from jaxtune.runs.plan.targets import Target
from jaxtune.runs.rows import RunRows

Changes = Mapping[str, Any]  # values of config fields by dotted key, such as batch.accumulate


@dataclass(frozen=True)
class Plan:
    """What a run takes of each device.

    Attributes:
      target: The devices.
      shapes: Shapes of what the run's programs take.
      outlook: What the training batches will be like.
      total: Steps of the run.
      programs: The programs, compiled for their largest batches.
      count: Number of programs that the run compiles in all, for batches of all shapes.
    """

    target: Target
    shapes: Shapes
    outlook: Outlook
    total: int
    programs: tuple[Program, ...]
    count: int

    @property
    def largest(self) -> Program:
        """The program with the highest peak."""
        return max(self.programs, key=lambda each: each.peak_bytes)

    @property
    def peak_bytes(self) -> int:
        """Highest memory of a device during the run."""
        return self.largest.peak_bytes

    @property
    def fits(self) -> bool | None:
        """Whether the run fits on the devices; None if their limit is unknown."""
        limit = self.target.limit_bytes
        return None if limit is None else self.peak_bytes <= limit

    def seconds(self, program: Program) -> float | None:
        """Returns a lower bound on the time of a program; None for a chip without figures."""
        chip, model = self.target.chip, self.shapes.model
        needed = (program.flops, program.read_bytes, sum(program.sent.values()))
        return chip and chip.seconds(*needed, str(model.dtype), rule(model))


def plan(
    assembly: Assembly, rows: RunRows, target: Target, progress: Progress, done: int = 0
) -> Plan:
    """Compiles the programs of a run from shapes; no weights are read.

    A program that a run on the same devices executes later is compiled once for both.

    Args:
      assembly: The parts of the run, whose mesh is of the target's devices.
      rows: Its rows.
      target: The devices.
      progress: Where the program under way is shown.
      done: Steps that were done before, whose batches need not fit.
    """
    total = assembly.total_steps(rows.loader)
    shapes = Shapes.of(assembly, total)
    outlook = rows.loader.outlook(done, total)
    held_out = rows.evaluator and rows.evaluator.outlook(0, rows.evaluator.steps)
    found = []
    for number, program in enumerate(_programs(assembly, rows, shapes, outlook, held_out), 1):
        progress.draw(f"compiled {number} programs, the last one to {program.name}")
        found.append(program)
    count = len(outlook.shapes) + (len(held_out.shapes) if held_out else 0)
    count += 2 if rows.answered else 0
    return Plan(target, shapes, outlook, total, tuple(found), count)


def _programs(
    assembly: Assembly, rows: RunRows, shapes: Shapes, outlook: Outlook, held_out: Outlook | None
) -> Iterator[Program]:
    """Yields the programs of a run, compiled for their largest batches."""
    for shape in outlook.largest:
        batch = assembly.placer.described(rows.loader.blank(shape), parts=True)
        yield programs.train(shapes, batch)
    for shape in held_out.largest if held_out else ():
        batch = assembly.placer.described(rows.evaluator.blank(shape), parts=False)
        yield programs.evaluate(shapes, batch)
    if rows.answered:
        given, stops = assembly.config.generate, assembly.tokenizer.stops
        sampling = Sampling.of(**sampling_options(given))
        yield from programs.decode(shapes, _answers(rows, given), sampling, len(stops))


def _answers(rows: RunRows, given: Generate) -> outline.Batch:
    """Returns the sizes of the largest batch of answers."""
    return outline.Batch(
        rows=min(given.batch, len(rows.answered)),
        longest=max(len(row.prompt) for row in rows.answered),
        pictures=max(len(row.pictures) for row in rows.answered),
        new=given.max_new_tokens,
    )


@dataclass(frozen=True, eq=False)
class Planner:
    """Plans changes of a config for the same rows and devices; each change is planned once."""

    assembly: Assembly
    rows: RunRows
    target: Target
    progress: Progress
    done: int = 0
    _known: dict[tuple, Plan] = field(default_factory=dict)

    def plan(self, changes: Changes) -> Plan:
        """Returns the plan of the config with these changes; raises UserError if they are none."""
        key = tuple(sorted(changes.items()))
        if key not in self._known:
            with contextlib.ExitStack() as stack:
                assembly, rows = self._changed(changes, stack)
                self._known[key] = plan(assembly, rows, self.target, self.progress, self.done)
        return self._known[key]

    def _changed(self, changes: Changes, stack: contextlib.ExitStack) -> tuple[Assembly, RunRows]:
        """Returns the parts of the changed run, whose loaders the stack closes."""
        if not changes:
            return self.assembly, self.rows
        assembly = replace(self.assembly, config=changed(self.assembly.config, changes))
        read = (self.rows.train, self.rows.held_out, self.rows.answered)
        return assembly, RunRows.of(assembly, *read, stack)

    def resident(self, changes: Changes) -> int:
        """Returns the bytes that a device holds throughout the run; compiles nothing."""
        config = changed(self.assembly.config, changes)
        return sum(Shapes.of(replace(self.assembly, config=config), 1).held.values())


def changed(config: Config, changes: Changes) -> Config:
    """Returns a config with other values of some fields; raises ConfigError for impossible ones."""
    values = resolved(config)
    for key, value in changes.items():
        *sections, name = key.split(".")
        place = values
        for section in sections:
            place = place[section]
        place[name] = value
    return parse(values)


def overrides(changes: Changes) -> list[str]:
    """Returns the command-line arguments that make these changes."""
    return [f"--config.{key}={value}" for key, value in changes.items()]
