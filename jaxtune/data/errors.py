"""Errors of data that cannot be used, and the policies for them: fail, or skip and count."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from jaxtune.display.errors import UserError

POLICIES = ("fail", "skip")
DEFAULTS = ("prefix", "suffix")  # columns that a config reads if it names no others
# Columns of rows as others write them, and the advice to read them.
LAYOUTS = (
    ({"conversations"}, 'these look like conversations: set data.messages to "conversations"'),
    ({"messages"}, 'these look like conversations: set data.messages to "messages"'),
    ({"instruction", "output"}, 'these look like Alpaca rows: set data.task to "alpaca"'),
    (
        {"prompt", "completion"},
        'set data.prefix to "{prompt}" and data.suffix to "{completion}"',
    ),
    ({"question", "answer"}, 'set data.prefix to "{question}" and data.suffix to "{answer}"'),
)
FEW = 5  # skipped rows whose errors are kept


class DataError(UserError):
    """Data that cannot be used; the message says where it is and what to do."""


class RowError(DataError):
    """A row that cannot be used; the message begins with its place."""

    def __init__(self, place: str, problem: str):
        super().__init__(f"{place}: {problem}")
        self.place, self.problem = place, problem


class TooLong(RowError):
    """A row with more tokens than the maximum length."""

    def __init__(self, place: str, problem: str, length: int):
        super().__init__(place, problem)
        self.length = length


class NothingScored(RowError):
    """A row without scored tokens, such as a conversation without an answer."""

    def __init__(self, place: str, problem: str):
        super().__init__(place, f"no token is scored: {problem}")


class Skipped:
    """Count of rows that were left out under a policy, with the errors of the first few."""

    def __init__(self, policy: str):
        self.policy = known("policy", policy, POLICIES)
        self.count = 0
        self.first: list[str] = []

    def note(self, error: RowError) -> None:
        """Counts a row as left out; under the policy "fail", raises its error instead."""
        if self.policy == "fail":
            raise error
        self.count += 1
        if len(self.first) < FEW:
            self.first.append(str(error))


def column(record: Mapping[str, Any], name: str, place: str) -> Any:
    """Returns the value of a column; raises RowError if the row has none."""
    if name not in record:
        raise RowError(place, f"no column {name!r}; {_instead(name, list(record))}")
    if record[name] is None:
        raise RowError(place, f"column {name!r} is empty (null)")
    return record[name]


def known(what: str, value: str, values: Iterable[str]) -> str:
    """Returns a value that is one of `values`; raises ValueError for any other."""
    if value not in values:
        raise UserError(f"{what} {value!r} is not one of {', '.join(map(repr, values))}")
    return value


def _instead(name: str, names: list[str]) -> str:
    """Returns text for an error message: the nearest name, if any, and all names; what to set."""
    advice = next((each for known, each in LAYOUTS if known <= {*names}), "")
    if name in DEFAULTS and advice:
        return f"the columns are {', '.join(map(repr, names))}; {advice}"
    folded = {each.casefold(): each for each in names}
    near = difflib.get_close_matches(name.casefold(), folded, 1, cutoff=0.5)
    if not names:
        return "the row has no columns"
    hint = f"did you mean {folded[near[0]]!r}? The" if near else "the"
    return f"{hint} columns are {', '.join(map(repr, names))}"
