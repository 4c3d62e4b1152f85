"""What is said of data that cannot be used, and what follows: fail, or skip and count."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

POLICIES = ("fail", "skip")
FEW = 5  # skipped rows whose places are kept


class DataError(ValueError):
    """Data that cannot be used as it is; the message says where it is and what to do."""


class RowError(DataError):
    """One row that cannot be used."""

    def __init__(self, place: str, problem: str):
        super().__init__(f"{place}: {problem}")
        self.place, self.problem = place, problem


class TooLong(RowError):
    """A row that has more tokens than the sequence."""


class NothingScored(DataError):
    """A row without an answer to learn: whatever the policy, it stops the run."""

    def __init__(self, place: str, problem: str):
        super().__init__(f"{place}: nothing is scored: {problem}")


class Skipped:
    """Rows left out under a policy: how many, and what was wrong with the first few."""

    def __init__(self, policy: str):
        self.policy = known("policy", policy, POLICIES)
        self.count = 0
        self.first: list[str] = []

    def note(self, error: RowError) -> None:
        """Count a row as left out; under the policy `fail` its error is raised instead."""
        if self.policy == "fail":
            raise error
        self.count += 1
        if len(self.first) < FEW:
            self.first.append(str(error))


def column(record: Mapping[str, Any], name: str, place: str) -> Any:
    """The value a record has in a column; that it has no such column is a `RowError`."""
    if name not in record:
        raise RowError(place, f"has no column {name!r}; {_instead(name, list(record))}")
    if record[name] is None:
        raise RowError(place, f"column {name!r} is empty (null)")
    return record[name]


def known(what: str, value: str, values: Iterable[str]) -> str:
    """The value, if it is one of those there are."""
    if value not in values:
        raise ValueError(f"{what} {value!r} is not one of {', '.join(map(repr, values))}")
    return value


def _instead(name: str, names: list[str]) -> str:
    """The nearest name there is, and the others."""
    folded = {each.casefold(): each for each in names}
    near = difflib.get_close_matches(name.casefold(), folded, 1, cutoff=0.5)
    nearest = f"the nearest is {folded[near[0]]!r}, of " if near else "there are "
    return nearest + (", ".join(map(repr, names)) or "none")
