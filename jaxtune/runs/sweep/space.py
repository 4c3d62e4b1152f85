"""The space of a sweep: which config keys vary, over which values, and on what conditions.

A space maps config keys to lists of values or to ranges:

    {"optim.lr": log(1e-5, 1e-2), "trainable.rank": [4, 8, 16], "seed": [0, 1]}
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, get_args

from jaxtune.config.fields import Setting, at
from jaxtune.config.python_file import plain
from jaxtune.config.schema import FIELDS, SCHEMA, Config
from jaxtune.config.values import Misfit, within
from jaxtune.display.errors import UserError
from jaxtune.display.escapes import shown

Overrides = dict[str, Any]  # values of config fields by dotted key
ORIGIN = "the sweep's space"
MOST_POINTS = 10_000  # of a grid, and trials of a sweep


class SpaceError(UserError):
    """A space that no sweep can search."""


@dataclass(frozen=True)
class Range:
    """Numbers between two bounds, both included.

    Attributes:
      low, high: The bounds.
      log: Whether the logarithm of the numbers is uniform, instead of the numbers themselves.
      whole: Whether they are whole numbers.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False


def uniform(low: float, high: float) -> Range:
    """Returns the range of numbers from `low` to `high`."""
    return Range(low, high)


def log(low: float, high: float) -> Range:
    """Returns the range of numbers from `low` to `high`, uniform in their logarithm."""
    return Range(low, high, log=True)


def integer(low: int, high: int, log: bool = False) -> Range:
    """Returns the range of whole numbers from `low` to `high`."""
    return Range(low, high, log, whole=True)


@dataclass(frozen=True)
class When:
    """Values of a key that varies only while another key has one of certain values."""

    values: Any
    key: str
    equals: tuple[Any, ...]


def when(values: Sequence[Any] | Range, key: str, *equals: Any) -> When:
    """Returns values, or a range, that count only in trials in which `key` is one of `equals`.

    Fields that the config itself reads only on a condition, such as those of LoRA, need no `when`.
    """
    return When(values, key, equals)


@dataclass(frozen=True)
class Dimension:
    """A config key that varies.

    Attributes:
      key: Dotted key of the config field.
      values: Values that it takes, or their range.
      conditions: Keys, with the values of each for which this key varies.
    """

    key: str
    values: tuple[Any, ...] | Range
    conditions: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    @property
    def described(self) -> Any:
        """The dimension as JSON, by which two spaces are compared."""
        ranged = isinstance(self.values, Range)
        found = vars(self.values) if ranged else [_json(each) for each in self.values]
        needs = {key: [_json(each) for each in values] for key, values in self.conditions}
        return {"values": found, **({"when": needs} if needs else {})}

    def __str__(self) -> str:
        if not isinstance(self.values, Range):
            return ", ".join(map(label, self.values))
        kind = "integer, " * self.values.whole + ("log" if self.values.log else "uniform")
        return f"{self.values.low:g} to {self.values.high:g} ({kind})"


@dataclass(frozen=True)
class Space:
    """The keys that a sweep varies around a config; keys that others depend on come first."""

    base: Config
    dimensions: tuple[Dimension, ...]

    @classmethod
    def of(cls, given: Mapping[str, Any], base: Config) -> "Space":
        """Returns the space of a mapping from keys to values; raises SpaceError listing problems.

        Nested mappings are sections: `{"optim": {"lr": log(1e-5, 1e-2)}}`.
        """
        if not isinstance(given, Mapping) or not given:
            raise SpaceError(
                f"space: found {shown(given)}, expected a dictionary of config keys with a list of "
                "values or a range for each"
            )
        settings = list(SCHEMA.settings(plain(given), ORIGIN))
        found, problems = [], []
        for setting in settings:
            try:
                found.append(_dimension(setting.key, setting.value))
            except Misfit as misfit:
                problems.append(f"{setting.key}: {misfit}")
        known = {each.key for each in found}
        for each in found:
            problems += _unmet(each, known, base)
        if not problems and len(known) < len(settings):
            problems.append("a key is given twice")
        if problems:
            raise SpaceError("\n  ".join(["the sweep's space has errors:", *problems]))
        return cls(base, tuple(_ordered(found)))

    def choose(self, pick: Callable[[Dimension], Any]) -> Overrides:
        """Returns the overrides of a trial, with `pick` choosing the value of each key in turn."""
        found: Overrides = {}
        for dimension in self.dimensions:
            if self._counts(dimension, found):
                found[dimension.key] = pick(dimension)
        return found

    @cached_property
    def ranged(self) -> tuple[str, ...]:
        """Keys whose values are ranges, of which no grid can be made."""
        return tuple(each.key for each in self.dimensions if isinstance(each.values, Range))

    @cached_property
    def points(self) -> list[Overrides]:
        """The overrides of every trial of a grid; a key that does not count has no value in it."""
        if self.ranged:
            raise SpaceError(
                f"space: a grid needs lists, but {', '.join(self.ranged)} "
                f"{'is a range' if len(self.ranged) == 1 else 'are ranges'}; list some values, or "
                "choose another sampler, such as tpe"
            )
        found: list[Overrides] = [{}]
        for each in self.dimensions:
            found = [
                {**point, **({each.key: value} if self._counts(each, point) else {})}
                for point in found
                for value in (each.values if self._counts(each, point) else (None,))
            ]
            if len(found) > MOST_POINTS:
                raise SpaceError(
                    f"space: the grid has more than {MOST_POINTS:,} points; list fewer values, or "
                    "choose another sampler, such as tpe"
                )
        return found

    @property
    def described(self) -> dict[str, Any]:
        """The space as JSON."""
        return {each.key: each.described for each in self.dimensions}

    def _counts(self, dimension: Dimension, chosen: Overrides) -> bool:
        return all(
            (chosen[key] if key in chosen else at(self.base, key)) in values
            for key, values in dimension.conditions
        )


def label(value: Any) -> str:
    """Formats a value for tables: numbers in few digits, lists as JSON writes them."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return (
        "[" + ", ".join(map(label, value)) + "]" if isinstance(value, list | tuple) else str(value)
    )


def text(overrides: Overrides) -> str:
    """Formats overrides on one line, by the names of the fields without their sections."""
    names = [key.rpartition(".")[2] for key in overrides]
    return " ".join(
        f"{name if names.count(name) == 1 else key}={label(value)}"
        for name, (key, value) in zip(names, overrides.items(), strict=True)
    )


def _json(value: Any) -> Any:
    return [_json(each) for each in value] if isinstance(value, tuple) else value


def _dimension(key: str, values: Any) -> Dimension:
    """Returns the dimension of a key, its values converted to the field's type."""
    if key not in FIELDS:
        SCHEMA.value(Setting(key, values, ORIGIN))  # raises the error about an unknown key
    conditions = [] if "when" not in FIELDS[key].metadata else [_own_condition(key)]
    if isinstance(values, When):
        if not values.equals:
            raise Misfit(f"when {values.key}: expected the values for which {key} counts")
        conditions.append((values.key, values.equals))
        values = values.values
    if isinstance(values, Range):
        return Dimension(key, _range(key, values), tuple(conditions))
    if not isinstance(values, list | tuple):
        raise Misfit(
            f"found {shown(values)}, expected a list of values, or a range: log(low, high), "
            "uniform(low, high) or integer(low, high)"
        )
    if not values:
        raise Misfit("found an empty list, expected at least one value")
    fitted = [SCHEMA.value(Setting(key, each, ORIGIN)) for each in values]
    if twice := [each for at, each in enumerate(fitted) if each in fitted[:at]]:
        raise Misfit(f"found {shown(twice[0])} twice")
    return Dimension(key, tuple(fitted), tuple(conditions))


def _own_condition(key: str) -> tuple[str, tuple[Any, ...]]:
    """Returns the condition on which the config reads a field, with the dotted key it is about."""
    name, values = FIELDS[key].metadata["when"]
    return f"{key.rpartition('.')[0]}.{name}", values


def _range(key: str, given: Range) -> Range:
    kinds = get_args(FIELDS[key].type) or (FIELDS[key].type,)
    if float not in kinds and int not in kinds:
        raise Misfit("found a range, but this field is no number; list its values")
    if not given.whole and float not in kinds:
        raise Misfit("found a range of numbers, but this field is a whole number; use integer()")
    numbers = (given.low, given.high)
    if not all(type(each) in (int, float) and math.isfinite(each) for each in numbers):
        raise Misfit(f"found a range from {shown(given.low)} to {shown(given.high)}")
    if given.whole and not all(each == int(each) for each in numbers):
        raise Misfit(f"found {given.low:g} to {given.high:g}, expected whole numbers")
    if not given.low < given.high:
        raise Misfit(f"found {given.low:g} to {given.high:g}, expected the lower number first")
    if given.log and given.low <= 0:
        raise Misfit(f"a logarithmic range must be above 0, but starts at {given.low:g}")
    kind = int if given.whole else float
    fitted = replace(given, low=kind(given.low), high=kind(given.high))
    for end in (fitted.low, fitted.high):
        if not within(end, FIELDS[key].metadata):
            SCHEMA.value(Setting(key, end, ORIGIN))
    return fitted


def _unmet(dimension: Dimension, known: set[str], base: Config) -> Iterator[str]:
    """Yields a message for each condition under which no trial would vary a key."""
    for key, values in dimension.conditions:
        if key not in FIELDS:
            yield f"{dimension.key}: when {key}: no such field; did you mean {SCHEMA.nearest(key)}?"
        elif key not in known and at(base, key) not in values:
            wanted = " or ".join(map(repr, values))
            yield (
                f"{dimension.key}: counts only when {key} is {wanted}, but it is "
                f"{at(base, key)!r} in the config"
            )


def _ordered(found: Sequence[Dimension]) -> Iterator[Dimension]:
    """Yields dimensions so that keys come before those that depend on them.

    In a grid the first keys change slowest. Those that decide what is loaded come first, so that
    trials on one base are neighbours.
    """
    rest = sorted(found, key=lambda each: not each.key.startswith("model."))
    while rest:
        waiting = {each.key for each in rest}
        free = [each for each in rest if not waiting & {key for key, _ in each.conditions}]
        if not free:
            keys = ", ".join(sorted(waiting))
            raise SpaceError(f"space: the conditions of {keys} depend on each other in a circle")
        yield free[0]
        rest.remove(free[0])
