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

    @property
    def sorted(self) -> list[Case]:
        """The defects by class, the most frequent ones first."""
        return sorted(self.cases.values(), key=lambda case: (case.probe, -case.times))

    def listing(self, folder: Path | None = None) -> str:
        """Returns every defect with its smallest input, and how to repeat it.

        With a `folder`, each input is also written to a file there.
        """
        parts = []
        for number, case in enumerate(self.sorted, 1):
            repeat = "INPUT"
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                repeat = str(folder / f"{number}.txt")
                Path(repeat).write_text(case.value)
            parts.append(_listed(case, repeat))
        return "\n\n".join(parts)

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
                for case in self.sorted
            ],
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=2) + "\n")


def _listed(case: Case, repeat: str) -> str:
    value = case.value if len(case.value) <= 600 else f"{case.value[:600]}…"
    lines = case.outcome.text.strip().splitlines()[-12:]
    text = "\n    ".join(line[:300] for line in lines)
    return (
        f"{case.outcome.signature}  ({case.probe}, {case.times} times)\n"
        f"  input: {value}\n"
        f"  found: {text}\n"
        f'  repeat: python -m tests.hostile --class "{case.probe}" --input {repeat}'
    )


def _number(count: int) -> str:
    return f"{count:,}" if count else "·"
