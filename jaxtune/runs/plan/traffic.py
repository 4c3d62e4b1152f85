"""Bytes that each device sends over the interconnect, read from a compiled XLA program.

Bytes are those of the ring algorithms over n devices, where a collective's operand, the part that a
device holds before it, takes P bytes:

    all-gather            P (n - 1)           the operand travels to every other device
    reduce-scatter        P (n - 1) / n
    all-reduce            2 P (n - 1) / n     a reduce-scatter, then an all-gather
    all-to-all            P (n - 1) / n
    collective-permute    P                   for each other device that it goes to
    collective-broadcast  P

Loops are multiplied out. Of the branches of a conditional, that which sends most counts.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from jaxtune.runs.plan import hlo

KINDS = (
    "all-gather",
    "reduce-scatter",
    "all-reduce",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
OPCODES = {name: kind for kind in KINDS for name in (kind, f"{kind}-start")}
OPCODES["ragged-all-to-all"] = "all-to-all"
GROUPS = re.compile(
    r"replica_groups=(?:\{(?P<listed>\{[\d,{}\s]*\})?\}|\[(?P<iota>[\d,]+)\]<="
    r"|mesh\[(?P<mesh>[^\]]*)\]\s*\{(?P<axes>[^}]*)\})"
)
# A TPU overlaps a collective with other work by repeating it in each of the fusions that it runs
# beside; the first of these has a custom call of its own.
REPEATED, FIRST = "chain_id=", 'custom_call_target="AsyncCollectiveStart"'
SCATTERING = "all-reduce-scatter"  # a TPU's fusion of an all-reduce and a slice of its result


@dataclass(frozen=True)
class Collective:
    """One collective of a program, and how often a run of the program executes it."""

    name: str
    kind: str  # one of KINDS
    shape: str  # of its operands, as HLO prints them, without layouts
    group: int  # devices that take part
    bytes: int  # that each device sends at each execution
    times: int | None  # executions; None where a loop's count cannot be told
    place: str  # `op_name` of its metadata: the place in the program that it comes from

    @property
    def total(self) -> int:
        """Bytes that each device sends in all; an execution in a loop of unknown count is one."""
        return self.bytes * (1 if self.times is None else self.times)


@dataclass(frozen=True)
class Traffic:
    """What a program sends: its collectives, those that send most first."""

    collectives: tuple[Collective, ...]

    @property
    def by_kind(self) -> dict[str, int]:
        """Bytes that each device sends, by kind of collective, the largest first."""
        found = Counter()
        for each in self.collectives:
            found[each.kind] += each.total
        return dict(found.most_common())

    @property
    def total(self) -> int:
        """Bytes that each device sends; a lower bound if `unknown` is not empty."""
        return sum(each.total for each in self.collectives)

    @property
    def unknown(self) -> tuple[Collective, ...]:
        """Collectives within loops whose counts cannot be told from the program's text."""
        return tuple(each for each in self.collectives if each.times is None)


def measure(text: str) -> Traffic:
    """Returns what each device sends when a program runs once.

    Args:
      text: The compiled program, as `compiled.as_text()` returns it.

    Returns:
      Its collectives with their bytes and executions; those that cannot be counted have `times`
      None. Raises UserError for text that is no compiled program.
    """
    module = hlo.parse(text)
    found = list(_collectives(module.entry, module))
    return Traffic(tuple(sorted(found, key=lambda each: -each.total)))


def _collectives(name: str, module: hlo.Module) -> Iterator[Collective]:
    """Yields the collectives of a computation and of those that it calls."""
    here = module.computations[name]
    started = any(FIRST in each.attributes for each in here.instructions.values())
    for each in here.instructions.values():
        if each.opcode in OPCODES:
            if started or REPEATED not in each.attributes:
                yield _collective(each, here, module)
        elif each.opcode == "while":
            times = hlo.trip_count(each, here, module)
            yield from (
                replace(inner, times=_product(times, inner.times))
                for called in each.called("body")
                for inner in _collectives(called, module)
            )
        elif each.opcode == "conditional":
            names = each.called("branch_computations", "true_computation", "false_computation")
            branches = [list(_collectives(called, module)) for called in names]
            yield from max(branches, key=lambda found: sum(inner.total for inner in found))
        elif each.opcode in ("fusion", "call", "async-start", "custom-call"):
            for called in each.called("calls", "to_apply", "called_computations"):
                yield from _collectives(called, module)


def _product(times: int | None, more: int | None) -> int | None:
    return None if times is None or more is None else times * more


def _collective(found: hlo.Instruction, here: hlo.Computation, module: hlo.Module) -> Collective:
    kind = OPCODES[found.opcode]
    if kind == "all-reduce" and here.name.startswith(SCATTERING):
        kind = "reduce-scatter"
    shapes = [here.instructions[name].shape for name in found.operands]
    operand, group = sum(map(hlo.nbytes, shapes)), _group(found, module)
    return Collective(
        name=found.name,
        kind=kind,
        shape=", ".join(re.sub(r"\{[^}]*\}|/\*[^*]*\*/", "", shape) for shape in shapes),
        group=group,
        bytes=_sent(kind, operand, group, found),
        times=1,
        place=found.attribute(r'op_name="([^"]*)"') or "",
    )


def _sent(kind: str, operand: int, group: int, found: hlo.Instruction) -> int:
    """Returns the bytes that a device sends at each execution, as the module's docstring says."""
    if kind == "collective-permute":
        return operand * _targets(found)
    if group == 1:
        return 0
    shares = {"all-gather": group - 1, "collective-broadcast": 1}
    share = shares.get(kind, (group - 1) / group)
    return round(operand * share * (2 if kind == "all-reduce" else 1))


def _targets(found: hlo.Instruction) -> int:
    """Returns the largest number of other devices that one device sends its operand to."""
    pairs = found.attribute(r"source_target_pairs=\{(.*?\})\}") or ""
    sources = [a for a, b in re.findall(r"\{(\d+),\s*(\d+)\}", pairs) if a != b]
    return max(Counter(sources).values(), default=0)


def _group(found: hlo.Instruction, module: hlo.Module) -> int:
    """Returns the number of devices in each group of a collective, the largest if they differ."""
    groups = GROUPS.search(found.attributes)
    if groups is None or not any(groups.groupdict().values()):
        return module.devices
    if groups["listed"]:
        return max(len(re.findall(r"\d+", each)) for each in groups["listed"].split("}"))
    if groups["iota"]:
        return math.prod(map(int, groups["iota"].split(",")[1:]))
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", groups["mesh"]))
    axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", groups["axes"])
    return math.prod(int(part or sizes[axis]) for axis, part in axes)
