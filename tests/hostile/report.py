"""Counts outcomes per class, and prints and writes what the campaign found."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.hostile.outcomes import DEFECT, KINDS, MESSAGE, SUCCESS, Outcome


@dataclass
class Case:
    """One defect: how often it was met, and its smallest input so far."""

    probe: str
    outcome: Outcome
    value: str
    number: int  # seed of the inputs in which it was met first
    count: int  # how many inputs are drawn from that seed
    times: int = 1


@dataclass
class Findings:
    """Outcomes of all inputs by class, and the defects by their causes."""

    seed: int
    counts: dict[str, Counter] = field(default_factory=dict)
    cases: dict[tuple[str, str], Case] = field(default_factory=dict)
    seconds: Counter = field(default_factory=Counter)  # by class
    stops: Counter = field(default_factory=Counter)  # signals that were sent to runs, by name

    def note(
        self,
        probe: str,
        value: str,
        outcome: Outcome,
        seconds: float = 0.0,
        number: int = 0,
        count: int = 0,
    ) -> None:
        """Counts one input, which is one of `count` drawn from the seed `number`."""
        counted = self.counts.setdefault(probe, Counter())
        self.seconds[probe] += seconds
        counted[outcome.kind] += 1
        if outcome.kind != DEFECT:
            return
        counted[outcome.defect] += 1
        known = self.cases.get((probe, outcome.signature))
        if known is None:
            self.cases[probe, outcome.signature] = Case(probe, outcome, value, number, count)
        else:
            known.times += 1
            self.shrunk(probe, value, outcome)

    def shrunk(self, probe: str, value: str, outcome: Outcome) -> None:
        """Keeps the smallest input of a defect."""
        known = self.cases[probe, outcome.signature]
        if len(value) < len(known.value):
            known.value, known.outcome = value, outcome

    def total(self, kind: str | None = None) -> int:
        """Returns the number of inputs, or of those with one outcome or kind of defect."""
        kinds = (SUCCESS, MESSAGE, DEFECT) if kind is None else (kind,)
        return sum(counted[each] for counted in self.counts.values() for each in kinds)

    def table(self) -> str:
        """Returns the counts of every class as text."""
        heads = [SUCCESS, MESSAGE, DEFECT, *KINDS]
        lines = [["class", "seconds", "inputs", *heads]]
        for probe, counted in sorted(self.counts.items()):
            whole = counted[SUCCESS] + counted[MESSAGE] + counted[DEFECT]
            numbers = [_number(counted[each]) for each in heads]
            lines.append([probe, f"{self.seconds[probe]:.0f}", f"{whole:,}", *numbers])
        numbers = [_number(self.total(each)) for each in heads]
        lines.append(["all", f"{self.seconds.total():.0f}", f"{self.total():,}", *numbers])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if number == 0 else cell.rjust(width)
                for number, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        )

    def listing(self) -> str:
        """Returns every defect with its smallest input, and how to repeat it."""
        found = sorted(self.cases.values(), key=lambda case: (case.probe, -case.times))
        return "\n\n".join(self._listed(case) for case in found)

    def _listed(self, case: Case) -> str:
        value = case.value if len(case.value) <= 600 else f"{case.value[:600]}…"
        text = "\n    ".join(line[:1_000] for line in case.outcome.text.strip().splitlines()[-12:])
        return (
            f"{case.outcome.signature}  ({case.probe}, {case.times} times)\n"
            f"  input: {value}\n"
            f"  found: {text}\n"
            f'  repeat: python -m tests.hostile --class "{case.probe}" --input INPUT'
        )

    def write(self, file: Path, **more: Any) -> None:
        """Writes everything as JSON."""
        content = {
            "seed": self.seed,
            **more,
            "inputs": self.total(),
            "seconds": {probe: round(taken) for probe, taken in self.seconds.items()},
            "stops": dict(self.stops),
            "defects": self.total(DEFECT),
            "classes": {probe: dict(counted) for probe, counted in self.counts.items()},
            "cases": [
                {
                    "class": case.probe,
                    "defect": case.outcome.defect,
                    "cause": case.outcome.signature,
                    "times": case.times,
                    "input": case.value,
                    "text": case.outcome.text,
                }
                for case in self.cases.values()
            ],
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=2) + "\n")


def _number(count: int) -> str:
    return f"{count:,}" if count else "·"
